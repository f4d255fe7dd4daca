"""What a sweep will cost: env steps exactly, hours from what finished jobs took or from a hint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.sweeping.folders import SweepFolder, read_json
from gipo_vla.sweeping.jobs import Job

CLUSTER = 100
"""Slots of the cluster in the printed estimate."""


@dataclass(frozen=True)
class Estimate:
    """Cost of jobs that are still to be done."""

    jobs: int
    env_steps: int
    seconds: float | None
    """Of wall time, one job after the other, with as many side by side as the rate was measured with; None:
    nothing is known."""
    source: str
    """Where the rate comes from."""

    def wall_seconds(self, at_once: int) -> float | None:
        """With so many side by side: a job is not divided."""
        if self.seconds is None or not self.jobs:
            return self.seconds
        rounds = -(-self.jobs // at_once)
        return rounds * self.seconds / self.jobs


def estimate(
    folder: SweepFolder, every: Sequence[Job], left: Sequence[Job], seconds_per_job: float | None
) -> Estimate:
    """Cost of the jobs in ``left``.

    Args:
        every: all jobs of the sweep; finished ones among them give the rate, in seconds an env step.
        seconds_per_job: the hint that counts while none is finished.
    """
    env_steps = sum(job.plan.env_steps for job in left)
    rates = _measured_rates(folder, every)
    if rates:
        return Estimate(
            len(left), env_steps, env_steps * median(rates), f"measured on {len(rates)} finished jobs"
        )
    if seconds_per_job is not None:
        hint = f"seconds_per_job={seconds_per_job:g}"
        return Estimate(len(left), env_steps, seconds_per_job * len(left), hint)
    planned = sum(job.plan.duration.total for job in left)
    return Estimate(len(left), env_steps, planned, "estimated from the settings, until a job has finished")


def _measured_rates(folder: SweepFolder, jobs: Sequence[Job]) -> list[float]:
    """Seconds an env step of each finished job, over all its sessions where they are on record."""
    spent = folder.seconds()
    rates = []
    for job in jobs:
        done = folder.finished(job)
        if done is None:
            continue
        finished = read_json(RunFolder(done).finished)
        seconds = spent.get(job.digest) or finished.get("session_seconds")
        if seconds and finished.get("env_steps"):
            rates.append(float(seconds) / finished["env_steps"])
    return rates
