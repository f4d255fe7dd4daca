"""What a sweep will cost: env steps exactly, hours from what finished jobs took or from a hint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.sweeping.folders import SweepFolder, read_json
from gipo_vla.sweeping.jobs import Job


@dataclass(frozen=True)
class Estimate:
    """Cost of jobs that are still to be done."""

    jobs: int
    env_steps: int
    seconds: float | None
    """Wall time, one job after the other, with as many side by side as the rate was measured with; None:
    nothing is known."""
    source: str
    """Where the rate comes from."""

    def wall_seconds(self, at_once: int) -> float | None:
        """Return the wall time with so many jobs side by side; a job is not divided."""
        if self.seconds is None or not self.jobs:
            return self.seconds
        return -(-self.jobs // at_once) * self.seconds / self.jobs


def estimate(
    folder: SweepFolder, every: Sequence[Job], left: Sequence[Job], seconds_per_job: float | None
) -> Estimate:
    """Return the cost of the jobs in ``left``.

    Args:
        every: all jobs of the sweep; finished ones among them give the rate, in seconds an env step.
        seconds_per_job: the hint that counts while none is finished.
    """
    env_steps = sum(job.env_steps for job in left)
    spent = folder.seconds()
    rates = []
    for job in every:
        if (done := folder.finished(job)) is None:
            continue
        finished = read_json(RunFolder(done).finished)
        # Over all sessions, where they are on record.
        seconds = spent.get(job.digest) or finished.get("session_seconds")
        if seconds and finished.get("env_steps"):
            rates.append(float(seconds) / finished["env_steps"])
    total, source = None, "unknown until a job has finished"
    if rates:
        total, source = env_steps * median(rates), f"measured on {len(rates)} finished jobs"
    elif seconds_per_job is not None:
        total, source = seconds_per_job * len(left), f"seconds_per_job={seconds_per_job:g}"
    return Estimate(len(left), env_steps, total, source)


def duration(seconds: float | None) -> str:
    """Return ``45 s``, ``12 min``, ``4.5 h`` or ``9.3 days``."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    count, unit = (seconds / 3600, "h") if seconds < 48 * 3600 else (seconds / 86400, "days")
    return f"{count:,.{1 if count < 10 else 0}f} {unit}"
