"""What a person sees of a sweep: what is planned, a line a job, a table at the end. All of it on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.reporting.table import Cell, Table
from gipo_vla.reporting.table import show as show_table
from gipo_vla.run.duration import in_words
from gipo_vla.sweeping.estimate import CLUSTER, Estimate
from gipo_vla.sweeping.folders import SweepFolder, read_json
from gipo_vla.sweeping.jobs import Job, JobList
from gipo_vla.sweeping.process import JobProcess
from gipo_vla.sweeping.runner import Listener, Outcome, Status
from gipo_vla.telemetry.console import console, settings_table

MOST_ROWS = 40
"""Of the table at the end; of a larger sweep only jobs that are not finished are listed."""
TAIL_BYTES = 16 * 1024
DRAW_SECONDS = 0.5


def show_plan(
    folder: SweepFolder, listed: JobList, chosen: Sequence[Job], left: Estimate, at_once: int, machine: str
) -> None:
    """The table that a sweep begins with."""
    settings_table(f"sweep  {folder.path}", _plan_rows(listed, chosen, left, at_once, machine))


def _plan_rows(
    listed: JobList, chosen: Sequence[Job], left: Estimate, at_once: int, machine: str
) -> list[tuple[str, str]]:
    jobs = f"{len(listed.jobs):,}"
    if listed.collapsed:
        jobs += f" ({listed.collapsed:,} further combinations would repeat one of them)"
    rows = [("jobs", jobs), ("varied", ", ".join(listed.varied) or "nothing")]
    if listed.left_out:
        rows.append(("left out", f"{', '.join(listed.left_out)}, for options without such a setting"))
    if len(chosen) < len(listed.jobs):
        rows.append(("part", f"{len(chosen):,} of them"))
    rows.append(("to do", f"{left.jobs:,}, {left.env_steps:,} env steps"))
    rows.append(("expected lag", _lags(chosen)))
    rows.append(("at once", f"{at_once:,} ({machine})"))
    if left.jobs:
        here, there = (in_words(left.wall_seconds(count)) for count in (at_once, CLUSTER))
        told = f"{here} here, {there} on {CLUSTER} slots ({left.source})"
        rows.append(("expected time", left.source if left.seconds is None else told))
    return rows


def _lags(jobs: Sequence[Job]) -> str:
    """Mean lag in iterations, as the settings predict it, and how many jobs have it."""
    lags = Counter(round(job.plan.lag.mean_iterations, 1) for job in jobs if job.plan.lag)
    shown = [f"{lag:g} iterations ({count:,} jobs)" for lag, count in sorted(lags.items())]
    return ", ".join(shown[:6]) + (" ..." if len(shown) > 6 else "")


def list_jobs(folder: SweepFolder, jobs: Sequence[Job]) -> None:
    """A line for each job, for a dry run."""
    for job in jobs:
        state = "finished" if folder.finished(job) else "started" if folder.started(job) else "new"
        console.print(f"{state:8}  {job.name}  {' '.join(job.arguments)}", soft_wrap=True, markup=False)


class ProgressLines(Listener):
    """A line whenever a job ends; on a terminal also a bar for each that runs.

    Args:
        remaining: seconds until the end of the sweep, if known.
    """

    def __init__(
        self, folder: SweepFolder, total: int, done: int, remaining: Callable[[], float | None]
    ) -> None:
        self.folder, self.total, self.done, self.remaining = folder, total, done, remaining
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        """Bars by digest of their jobs."""
        self._drawn = 0.0
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24))
            numbers = TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[status]}")
            # Without a thread that draws: processes are started from here.
            self._bars = Progress(
                *columns, numbers, TimeElapsedColumn(), console=console, auto_refresh=False, transient=True
            )
            self._bars.start()

    def close(self) -> None:
        """Take the bars away."""
        if self._bars:
            self._bars.stop()

    def started(self, process: JobProcess) -> None:
        if self._bars:
            iterations = process.job.settings.iterations
            bar = self._bars.add_task(process.job.name, total=iterations, status="")
            self._tasks[process.job.digest] = bar

    def tick(self, running: Sequence[JobProcess]) -> None:
        if not self._bars or time.monotonic() - self._drawn < DRAW_SECONDS:
            return
        self._drawn = time.monotonic()
        for process in running:
            row = last_row(RunFolder(process.folder).metrics)
            recent = row.get("success_once_recent")
            status = "" if recent is None else f"success {recent:.2f}"
            bar = self._tasks[process.job.digest]
            self._bars.update(bar, completed=row.get("iteration", 0), status=status)
        self._bars.refresh()

    def ended(self, outcome: Outcome) -> None:
        if self._bars and outcome.job.digest in self._tasks:
            self._bars.remove_task(self._tasks.pop(outcome.job.digest))
        self.done += 1
        left = self.remaining()
        parts = [
            f"[{self.done:>{len(str(self.total))}}/{self.total}] {outcome.status:8}  {outcome.job.name}",
            _success_text(self.folder, outcome),
            outcome.problem,
            in_words(outcome.seconds) if outcome.ran else "",
            f"about {in_words(left)} left" if left else "",
        ]
        console.print("  ".join(part for part in parts if part), soft_wrap=True, markup=False)

    def say(self, line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)


def last_row(path: Path) -> dict[str, Any]:
    """The last whole line of a metrics.jsonl that is being written; empty if there is none."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        whole = file.read().rpartition(b"\n")[0]
        row = json.loads(whole.rpartition(b"\n")[2])
        return row if isinstance(row, dict) else {}
    return {}


def success(folder: SweepFolder, job: Job) -> float | None:
    """Success of a finished job on held-out initial states."""
    done = folder.finished(job)
    if done is None or not RunFolder(done).evaluation.exists():
        return None
    value = read_json(RunFolder(done).evaluation).get("success_once")
    return None if value is None else float(value)


def _success_text(folder: SweepFolder, outcome: Outcome) -> str:
    value = success(folder, outcome.job) if outcome.status is Status.FINISHED else None
    return "" if value is None else f"success {value:.2f}"


def show_outcomes(folder: SweepFolder, outcomes: Sequence[Outcome]) -> None:
    """The table that a sweep ends with."""
    listed = list(outcomes)
    title = ", ".join(
        f"{count:,} {status}" for status, count in Counter(one.status.value for one in outcomes).items()
    )
    if len(listed) > MOST_ROWS:
        listed = [one for one in outcomes if one.status is not Status.FINISHED][:MOST_ROWS]
    rows: list[list[Cell]] = [
        [
            one.job.name,
            one.status.value,
            success(folder, one.job),
            round(one.seconds / 60, 2) if one.ran else None,
            one.problem[:80],
        ]
        for one in listed
    ]
    columns: tuple[str, ...] = ("job", "status", "success_once", "minutes", "problem")
    if not any(one.problem for one in listed):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    if rows:
        show_table(Table("jobs", title, columns, rows))
    else:
        console.print(title or "no job in this part")
