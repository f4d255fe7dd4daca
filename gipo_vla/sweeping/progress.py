"""What a person sees of a sweep: what is planned, a line a job, a table at the end. All of it on stderr."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from gipo_vla import foreign
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.reporting.table import Table, show
from gipo_vla.sweeping.folders import Estimate, SweepFolder
from gipo_vla.sweeping.jobs import Job, JobList
from gipo_vla.sweeping.process import JobProcess
from gipo_vla.sweeping.runner import Listener, Outcome, Status
from gipo_vla.telemetry.console import console, in_words, settings_table
from gipo_vla.telemetry.metrics import is_row

CLUSTER = 100
"""Slots of the cluster in the printed estimate."""
MOST_ROWS = 40
"""Rows of the table at the end; of a larger sweep only jobs that are not finished are listed."""
DRAW_SECONDS = 0.5


def show_plan(
    folder: SweepFolder, listed: JobList, chosen: Sequence[Job], left: Estimate, at_once: int, machine: str
) -> None:
    """Print the table that a sweep begins with."""
    repeated = f" ({listed.collapsed:,} further combinations would repeat one of them)"
    left_out = f"{', '.join(listed.left_out)}, for options without such a setting"
    lags = Counter(round(job.plan.lag.mean_iterations, 1) for job in chosen if job.plan.lag)
    shown = [f"{lag:g} iterations ({count:,} jobs)" for lag, count in sorted(lags.items())]
    here, there = (in_words(left.wall_seconds(count)) for count in (at_once, CLUSTER))
    rows = {
        "jobs": f"{len(listed.jobs):,}{repeated if listed.collapsed else ''}",
        "varied": ", ".join(listed.varied) or "nothing",
        "left out": left_out if listed.left_out else "",
        "score": folder.score,
        "part": f"{len(chosen):,} of them" if len(chosen) < len(listed.jobs) else "",
        "to do": f"{left.jobs:,}, {left.env_steps:,} env steps",
        "expected lag": ", ".join(shown[:6]) + (" ..." if len(shown) > 6 else ""),
        "at once": f"{at_once:,} ({machine})",
        "expected time": f"{here} here, {there} on {CLUSTER} slots ({left.source})" if left.jobs else "",
    }
    settings_table(f"sweep  {folder.path}", [(name, text) for name, text in rows.items() if text])


def list_jobs(folder: SweepFolder, jobs: Sequence[Job]) -> None:
    """Print a line for each job, for a dry run."""
    for job in jobs:
        state = "finished" if folder.finished(job) else "started" if folder.run(job).holds_run() else "new"
        _say(f"{state:8}  {job.name}  {' '.join(job.arguments)}")


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False)


class ProgressLines(Listener):
    """A line whenever a job ends; on a terminal also a bar for each that runs.

    Args:
        remaining: seconds until the end of the sweep.
    """

    say = staticmethod(_say)

    def __init__(self, folder: SweepFolder, total: int, done: int, remaining: Callable[[], float]) -> None:
        self.folder, self.total, self.done, self.remaining = folder, total, done, remaining
        # Without a thread that draws: processes are started from here.
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[status]}"),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[str, TaskID] = {}
        """Bars by the digests of their jobs."""
        self._drawn = 0.0
        self._bars.start()

    def close(self) -> None:
        """Take the bars away."""
        self._bars.stop()

    def started(self, process: JobProcess) -> None:
        iterations = process.job.settings.iterations
        self._tasks[process.job.digest] = self._bars.add_task(process.job.name, total=iterations, status="")

    def tick(self, running: Sequence[JobProcess]) -> None:
        if self._bars.disable or time.monotonic() - self._drawn < DRAW_SECONDS:
            return
        self._drawn = time.monotonic()
        for process in running:
            if row := last_row(RunFolder(process.folder).metrics):
                recent = row.get("success_once_recent")
                status = "" if recent is None else f"success {recent:.2f}"
                bar = self._tasks[process.job.digest]
                self._bars.update(bar, completed=row.get("iteration", 0), status=status)
        self._bars.refresh()

    def ended(self, outcome: Outcome) -> None:
        if outcome.job.digest in self._tasks:
            self._bars.remove_task(self._tasks.pop(outcome.job.digest))
        self.done += 1
        left = self.remaining()
        success = self.folder.success(outcome.job) if outcome.status is Status.FINISHED else None
        parts = [
            f"[{self.done:>{len(str(self.total))}}/{self.total}] {outcome.status:8}  {outcome.job.name}",
            "" if success is None else f"success {success:.2f}",
            outcome.problem,
            in_words(outcome.seconds) if outcome.ran else "",
            f"about {in_words(left)} left" if left else "",
        ]
        _say("  ".join(part for part in parts if part))


def last_row(path: Path) -> dict[str, Any]:
    """Return the last row of a metrics.jsonl that is being written; empty if it is not there as a whole."""
    with suppress(OSError, ValueError, IndexError), foreign.open_regular(path, foreign.LARGEST_LINES) as file:
        row = foreign.parse_json(deque(file, maxlen=1)[0])
        return row if is_row(row, ("iteration",)) else {}
    return {}


def show_outcomes(folder: SweepFolder, outcomes: Sequence[Outcome]) -> None:
    """Print the table that a sweep ends with."""
    counts = Counter(one.status.value for one in outcomes)
    title = ", ".join(f"{count:,} {status}" for status, count in counts.items())
    listed = list(outcomes)
    if len(listed) > MOST_ROWS:
        listed = [one for one in outcomes if one.status is not Status.FINISHED][:MOST_ROWS]
    if not listed:
        console.print(title or "no job in this part")
        return
    problems = any(one.problem for one in listed)
    records = [
        {
            "job": one.job.name,
            "status": one.status.value,
            "success_once": folder.success(one.job),
            "minutes": round(one.seconds / 60, 2) if one.ran else None,
            **({"problem": one.problem[:80]} if problems else {}),
        }
        for one in listed
    ]
    show(Table.of("jobs", title, records))
