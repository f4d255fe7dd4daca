"""What is done, what is half done, what the rest will cost, and keeping what is worth keeping.

    SWEEP/
      sweep.json          by what it is scored, what was varied, and every job with its overrides
      launches.jsonl      a line whenever a job starts or ends
      JOB/                a run folder, with log.txt beside the run's own files

A job is found by the digest at the end of its folder's name, so that words before it may change when a sweep
grows. It is done when finished.json is there, or when its small data is kept elsewhere, in a folder or in an
archive (``gipo_vla.reporting.archive``).
"""

from __future__ import annotations

import fcntl
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any

from gipo_envs.errors import UserError
from gipo_vla import foreign
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.reporting import archive
from gipo_vla.reporting.summary import HeldOutScore, recorded_score
from gipo_vla.run.resume import differences
from gipo_vla.settings import runs
from gipo_vla.sweeping.jobs import DIGEST_LENGTH, Job, JobList
from gipo_vla.telemetry.metrics import replace_file

KEPT_DATA = Path("docs/results/data")
"""Where small data of finished sweeps is looked for, below the current folder."""
LOG = "log.txt"
_LOCK = ".sweep.lock"


class SweepFolder:
    """A sweep on disk.

    Args:
        path: of the run folders.
        kept: folders that may hold small data of finished jobs.
        score: what the sweep is scored by; None: what it was started with.

    Raises:
        UserError: it was started with another score.
    """

    def __init__(self, path: Path, kept: Sequence[Path] = (), score: HeldOutScore | None = None) -> None:
        self.path = path
        if path.is_dir():
            foreign.check_folder(path)
        recorded = next((known for place in (path, *kept) if (known := recorded_score(place))), None)
        if recorded and score not in (None, recorded):
            raise UserError(
                f"score={score}, but {path} was started with score={recorded}, and a score is chosen before "
                "the first run: leave it out, or choose another sweep_dir"
            )
        self.score: HeldOutScore = recorded or score or "success_once"
        self._runs, *self._kept = [_by_digest(place) for place in (path, *kept)]
        self._archived = {
            record["name"][-DIGEST_LENGTH:]: (place, record)
            for place in kept
            for record in archive.read_folder(place)
            if "finished" in record
        }

    def run(self, job: Job) -> RunFolder:
        """Return where a job runs, or would."""
        return RunFolder(self._runs.get(job.digest, self.path / job.name))

    def finished(self, job: Job) -> Path | None:
        """Return the folder that holds a job's results, also in an archive; None if it is not done."""
        kept = [place[job.digest] for place in self._kept if job.digest in place]
        for folder in (self.run(job).path, *kept):
            if RunFolder(folder).finished.exists():
                return folder
        return self._archived[job.digest][0] if job.digest in self._archived else None

    def record_of(self, job: Job) -> dict[str, Any] | None:
        """Return a finished job's record, if an archive is what holds its results."""
        place, record = self._archived.get(job.digest, (None, None))
        return record if place is not None and self.finished(job) == place else None

    def result(self, job: Job, part: str) -> dict[str, Any]:
        """``evaluation`` or ``finished`` of a finished job; empty where there is none.

        Raises:
            UserError: the file cannot be read.
        """
        done, record = self.finished(job), self.record_of(job)
        if record is None:
            return (archive.read_part(done, part) if done else None) or {}
        values: dict[str, Any] = record.get(part, {})
        return values

    def success(self, job: Job) -> float | None:
        """Return the success of a finished job on held-out initial states."""
        value = self.result(job, "evaluation").get("success_once")
        return None if value is None else float(value)

    def check(self, jobs: Iterable[Job]) -> None:
        """Raise a UserError if a folder holds a run of other settings than its job has today.

        The digest is of the overrides; defaults may have changed since.
        """
        for job in jobs:
            if self.result(job, "finished").get("config_digest") == runs.digest(job.settings):
                continue
            folder = RunFolder(self.finished(job) or self.run(job).path)
            recorded = (self.record_of(job) or {}).get("config") or archive.read_mapping(folder.config)
            with foreign.understood(folder.config):
                changes = differences(recorded, job.settings, added=False) if recorded else {}
            if changes:
                raise UserError(
                    f"{folder.path} is of other settings than this job has now "
                    f"({'; '.join(changes.values())}): move it away, or choose another sweep_dir"
                )

    def write_list(self, listed: JobList, place: Path | None = None) -> None:
        """Write sweep.json, here or in another folder.

        Jobs that an earlier, wider command listed stay in it: here as long as their folders are there, in
        another folder always.

        Raises:
            UserError: the folder cannot be written.
        """
        place = place or self.path
        file = place / "sweep.json"
        jobs: list[dict[str, Any]] = [
            {"name": job.name, "overrides": job.arguments, "factors": job.factors} for job in listed.jobs
        ]
        new = {job.digest for job in listed.jobs}
        for row in (archive.read_sweep(file) or {"jobs": []})["jobs"]:
            there = place != self.path or (place / row["name"]).is_dir()
            if there and row["name"][-DIGEST_LENGTH:] not in new:
                jobs.append(row)
        factors: dict[str, list[Any]] = {key: [] for key in listed.factors}
        for row in jobs:
            for key, value in row.get("factors", {}).items():
                if value not in factors.setdefault(key, []):
                    factors[key].append(value)
        content = {"score": self.score, "factors": factors, "arms": listed.arms, "jobs": jobs}
        try:
            place.mkdir(parents=True, exist_ok=True)
            replace_file(file, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            name = "sweep_dir" if place == self.path else "keep"
            raise UserError(
                f"{name}={place} cannot be written ({error.strerror}): choose another {name}"
            ) from error

    def record(self, job: Job, event: str, **facts: Any) -> None:
        """Append a line to launches.jsonl."""
        row = {"at": round(time.time(), 3), "job": job.name, "event": event, **facts}
        with open(self.path / "launches.jsonl", "a", opener=foreign.without_links) as file:
            file.write(json.dumps(row) + "\n")


def _by_digest(place: Path) -> dict[str, Path]:
    """The folders of a folder by the digests that their names end with."""
    if not place.is_dir():
        return {}
    return {path.name[-DIGEST_LENGTH:]: path for path in sorted(place.iterdir()) if path.is_dir()}


def try_to_lock(folder: RunFolder) -> IO[str] | None:
    """Reserve a job for this process until the returned file is closed; None if another one has it.

    A run that outlives a sweep that was killed keeps its folder while it saves, and counts as another one.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    file = foreign.text_stream(folder.path / _LOCK)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.lock().close()
    except (BlockingIOError, UserError):
        file.close()
        return None
    except OSError:  # a file system without locks
        pass
    return file


def keep(sweep: SweepFolder, jobs: Iterable[Job], destination: Path, rows: int | None) -> None:
    """Add what a report needs of finished jobs to the archives in ``destination``.

    That is settings without the run's path, overrides, metrics, evaluations and finished.json. A job that is
    there already stays as it is.

    Args:
        sweep: where the jobs ran.
        jobs: those that are not finished are passed over.
        rows: at most so many lines of metrics.jsonl, evenly spread; None: all of them.

    Raises:
        UserError: it cannot be written.
    """
    have = {record["name"][-DIGEST_LENGTH:] for record in archive.read_folder(destination)}
    records = [
        sweep.record_of(job) or archive.record(folder, job.name, rows, job.arguments)
        for job in jobs
        if job.digest not in have and (folder := sweep.finished(job))
    ]
    try:
        archive.add(destination, records)
    except OSError as error:
        raise UserError(f"keep={destination} cannot be written ({error.strerror})") from error


# ---------------------------------------------------------------------------------------------------- costs


@dataclass(frozen=True)
class Estimate:
    """Cost of jobs that are still to be done."""

    jobs: int
    env_steps: int
    seconds: float
    """Wall time, one job after the other, with as many side by side as the rate was measured with."""
    source: str
    """Where the rate comes from."""

    def wall_seconds(self, at_once: int) -> float:
        """Return the wall time with so many jobs side by side; a job is not divided."""
        return -(-self.jobs // at_once) * self.seconds / self.jobs if self.jobs else 0.0


def estimate(
    folder: SweepFolder, every: Sequence[Job], left: Sequence[Job], seconds_per_job: float | None
) -> Estimate:
    """Return the cost of the jobs in ``left``: env steps exactly, time from what others took or from a hint.

    Args:
        every: all jobs of the sweep; finished ones among them give the rate, in seconds an env step.
        seconds_per_job: the hint that counts while none is finished.
    """
    spent: defaultdict[str, float] = defaultdict(float)
    for row in foreign.json_lines(folder.path / "launches.jsonl"):
        with foreign.understood(folder.path / "launches.jsonl"):
            spent[row["job"][-DIGEST_LENGTH:]] += max(0.0, float(row.get("seconds", 0.0)))
    rates = []
    for job in every:
        finished = folder.result(job, "finished")
        # Over all sessions, where they are on record.
        seconds = spent[job.digest] or finished.get("session_seconds")
        if seconds and finished.get("env_steps"):
            rates.append(float(seconds) / finished["env_steps"])
    env_steps = sum(job.plan.env_steps for job in left)
    if rates:
        total, source = env_steps * median(rates), f"measured on {len(rates)} finished jobs"
    elif seconds_per_job is not None:
        total, source = seconds_per_job * len(left), f"seconds_per_job={seconds_per_job:g}"
    else:
        total = sum(job.plan.duration.total for job in left)
        source = "estimated from the settings, until a job has finished"
    return Estimate(len(left), env_steps, total, source)
