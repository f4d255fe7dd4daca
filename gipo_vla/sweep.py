"""Run many settings from one command: ``python -m gipo_vla.sweep KEY=VALUE,VALUE ... [sweep settings]``.

    python -m gipo_vla.sweep experiment=point_reach replay.capacity=1000,5000 objective.sigma=0.5,1 seed=0,1,2
    python -m gipo_vla.sweep experiment=point_reach objective=gipo,ppo objective.sigma=0.5,1 seed=0,1
    python -m gipo_vla.sweep learner.policy_learning_rate='log(1e-4,1e-3)' sample=20 seed=0,1
    python -m gipo_vla.sweep sweep=paper_metaworld_small dry_run=true

Lists make a grid, over any setting and any group of options. A setting that an option does not have (sigma
of PPO) is left out for it. Every job is checked before the first one starts. Jobs are run folders in
``sweep_dir``; the same command resumes what is not finished, after Ctrl-C, after a crash, or with values
added. Jobs that fail do not stop the others. ``score=`` says, before the first job starts, what the report on
the sweep compares its runs by.

Report on it with ``python -m gipo_vla.report SWEEP_DIR``. docs/sweeps.md has more.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gipo_vla import cli, options
from gipo_vla.settings import runs
from gipo_vla.sweeping import folders, jobs, process, progress
from gipo_vla.sweeping.folders import KEPT_DATA, Estimate, SweepFolder, estimate
from gipo_vla.sweeping.jobs import Job, JobList
from gipo_vla.sweeping.process import Command, train_command
from gipo_vla.sweeping.runner import Outcome, Runner, Status
from gipo_vla.sweeping.settings import OWN_KEYS, SweepSettings, default_sweep_dir, load, split
from gipo_vla.telemetry.console import console


def main(arguments: Sequence[str]) -> int:
    usage = f"{__doc__}\nOptions:\n{options.describe(SweepSettings, OWN_KEYS)}"
    own, rest = split(arguments)
    if "--cfg" in rest:
        print(runs.to_yaml(load(own, [text for text in rest if text != "--cfg"])))
        return 0
    overrides = cli.handle_common_flags(rest, "sweep", usage)
    if overrides is None:
        return 0
    sweep = Sweep(load(own, overrides))
    sweep.show()
    if sweep.settings.dry_run:
        progress.list_jobs(sweep.folder, sweep.chosen)
        print(json.dumps(sweep.summary()))
        return 0
    return sweep.run()


class Sweep:
    """A sweep from its settings to its exit status. Raises UserError: whatever is wrong with the settings of
    any job, before anything is started or written."""

    def __init__(self, settings: SweepSettings) -> None:
        self.settings = settings
        self.listed: JobList = jobs.plan(settings)
        every = self.listed.jobs
        path = default_sweep_dir(every[0].settings.experiment, self.listed.varied)
        path = Path(settings.sweep_dir).expanduser() if settings.sweep_dir else path
        self.keep = Path(settings.keep).expanduser() if settings.keep else None
        kept = [place for place in (self.keep, KEPT_DATA / path.name) if place]
        self.folder = SweepFolder(path, kept, settings.score)
        self.chosen = every[settings.slice_of(len(every))]
        self.folder.check(self.chosen)
        self.gpus = process.gpus()
        self.at_once = process.at_once(
            settings, [job.settings for job in every], process.cores(), len(self.gpus)
        )

    @property
    def left(self) -> list[Job]:
        """Jobs that are not finished."""
        return [job for job in self.chosen if not self.folder.finished(job)]

    def cost(self) -> Estimate:
        """Return the cost of the jobs that are not finished."""
        return estimate(self.folder, self.listed.jobs, self.left, self.settings.seconds_per_job)

    def show(self) -> None:
        """Print what is planned."""
        machine = f"{process.cores()} cores" + (f", {len(self.gpus)} GPUs" if self.gpus else "")
        progress.show_plan(self.folder, self.listed, self.chosen, self.cost(), self.at_once, machine)

    def run(self, command: Command | None = None) -> int:
        """Run what is left, keep what is finished, print the results; the exit status."""
        began = time.monotonic()
        cli.deny_writing_to_others()
        self.folder.write_list(self.listed)
        left = self.left
        ranks = self.settings.ranks if self.settings.launch == "torchrun" else None
        lines = progress.ProgressLines(
            self.folder,
            len(self.chosen),
            len(self.chosen) - len(left),
            lambda: self.cost().wall_seconds(self.at_once),
        )
        runner = Runner(
            self.folder,
            self.at_once,
            command or partial(train_command, torchrun_ranks=ranks),
            self.gpus,
            self.settings.ranks,
            lines,
        )
        try:
            ran = {outcome.job.digest: outcome for outcome in runner.run(left)}
        finally:
            lines.close()
        outcomes = [ran.get(job.digest, Outcome(job, Status.FINISHED)) for job in self.chosen]
        self._keep_finished(outcomes)
        progress.show_outcomes(self.folder, outcomes)
        seconds = round(time.monotonic() - began, 1)
        print(json.dumps(self.summary() | results(outcomes) | {"seconds": seconds}))
        if any(outcome.status is Status.FAILED for outcome in outcomes):
            return 1
        return 0 if runner.asked_by is None else 128 + runner.asked_by

    def _keep_finished(self, outcomes: Sequence[Outcome]) -> None:
        if self.keep is None:
            return
        jobs_run = [outcome.job for outcome in outcomes]
        folders.keep(self.folder, jobs_run, self.keep, self.settings.keep_rows)
        self.folder.write_list(self.listed, self.keep)
        console.print(f"small data of finished jobs: {self.keep}", soft_wrap=True)

    def summary(self) -> dict[str, object]:
        """Return the line for programs: what is planned."""
        cost = self.cost()
        return {
            "sweep_dir": str(self.folder.path),
            "dry_run": self.settings.dry_run,
            "score": self.folder.score,
            "jobs": len(self.chosen),
            "names": [job.name for job in self.chosen],
            "left": cost.jobs,
            "left_env_steps": cost.env_steps,
            "left_seconds": round(cost.wall_seconds(self.at_once), 1),
            "at_once": self.at_once,
        }


def results(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Return the line for programs: what became of the jobs."""
    counts = Counter(one.status for one in outcomes)
    failed = [one for one in outcomes if one.status is Status.FAILED]
    return {
        "ran": sum(one.ran for one in outcomes),
        "finished": counts[Status.FINISHED],
        "stopped": counts[Status.STOPPED],
        "not_started": counts[Status.WAITING],
        "failed": [{"job": one.job.name, "problem": one.problem} for one in failed],
    }


if __name__ == "__main__":
    cli.run(main)
