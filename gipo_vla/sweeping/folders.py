"""What is done, what is half done, and keeping what is worth keeping.

    SWEEP/
      sweep.json          what was varied, and every job with its overrides
      launches.jsonl      a line whenever a job starts or ends
      JOB/                a run folder, with log.txt beside the run's own files

A job is found by the digest at the end of its folder's name, so that words before it may change when a sweep
grows. It is done when finished.json is there, or when the small data of it is kept elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from gipo_envs.errors import UserError
from gipo_vla import config
from gipo_vla.checkpoint.resume import differences
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.reporting.runs import thin
from gipo_vla.sweeping.jobs import DIGEST_LENGTH, Job, JobList
from gipo_vla.telemetry.metrics import read_json_lines

KEPT_DATA = Path("docs/results/data")
"""Where small data of finished sweeps is looked for, below the current folder."""
LOG = "log.txt"
_LOCK = ".sweep.lock"


class SweepFolder:
    """A sweep on disk.

    Args:
        path: of the run folders.
        kept: folders that may hold small data of finished jobs.
    """

    def __init__(self, path: Path, kept: Sequence[Path] = ()) -> None:
        self.path = path
        self._runs = _by_digest(path)
        self._kept = {place: _by_digest(place) for place in kept}

    def run(self, job: Job) -> RunFolder:
        """Return where a job runs, or would."""
        return RunFolder(self._runs.get(job.digest, self.path / job.name))

    def finished(self, job: Job) -> Path | None:
        """Return the folder that holds a job's results; None if the job is not done."""
        kept = [place[job.digest] for place in self._kept.values() if job.digest in place]
        for folder in (self.run(job).path, *kept):
            if RunFolder(folder).finished.exists():
                return folder
        return None

    def kept(self, job: Job, place: Path) -> bool:
        """Whether a job's small data lies in a folder, under whatever name the job had then."""
        folder = self._kept[place].get(job.digest)
        return folder is not None and RunFolder(folder).finished.exists()

    def success(self, job: Job) -> float | None:
        """Return the success of a finished job on held-out initial states."""
        done = self.finished(job)
        if done is None or not RunFolder(done).evaluation.exists():
            return None
        value = read_json(RunFolder(done).evaluation).get("success_once")
        return None if value is None else float(value)

    def check(self, jobs: Iterable[Job]) -> None:
        """Raise a UserError if a folder holds a run of other settings than its job has today.

        The digest is of the overrides; defaults may have changed since.
        """
        for job in jobs:
            folder = RunFolder(self.finished(job) or self.run(job).path)
            recorded = read_json(folder.finished).get("config_digest") if folder.finished.exists() else None
            if not folder.config.exists() or recorded == config.digest(job.settings):
                continue
            changes = differences(config.from_yaml(folder.config), job.settings)
            if changes:
                raise UserError(
                    f"{folder.path} is of other settings than this job has now ({'; '.join(changes)}): move "
                    "it away, or choose another sweep_dir"
                )

    def write_list(self, listed: JobList, place: Path | None = None) -> None:
        """Write sweep.json, here or in another folder.

        Jobs that an earlier, wider command listed stay in it as long as their folders are there.

        Raises:
            UserError: the folder cannot be written.
        """
        place = place or self.path
        file = place / "sweep.json"
        jobs: list[dict[str, Any]] = [
            {"name": job.name, "overrides": job.arguments, "factors": job.factors} for job in listed.jobs
        ]
        new = {job.digest for job in listed.jobs}
        for row in read_json(file)["jobs"] if file.exists() else ():
            if row["name"][-DIGEST_LENGTH:] not in new and (place / row["name"]).is_dir():
                jobs.append(row)
        factors: dict[str, list[Any]] = {key: [] for key in listed.factors}
        for row in jobs:
            for key, value in row.get("factors", {}).items():
                if value not in factors.setdefault(key, []):
                    factors[key].append(value)
        text = json.dumps({"factors": factors, "arms": listed.arms, "jobs": jobs}, indent=1) + "\n"
        try:
            place.mkdir(parents=True, exist_ok=True)
            temporary = place / f".sweep.{os.getpid()}.tmp"  # parts of one sweep start together
            temporary.write_text(text)
            temporary.replace(file)
        except OSError as error:
            name = "sweep_dir" if place == self.path else "keep"
            raise UserError(
                f"{name}={place} cannot be written ({error.strerror}): choose another {name}"
            ) from error

    def record(self, job: Job, event: str, **facts: Any) -> None:
        """Append a line to launches.jsonl."""
        row = {"at": round(time.time(), 3), "job": job.name, "event": event, **facts}
        with (self.path / "launches.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def seconds(self) -> dict[str, float]:
        """Return the wall time of each job over all its launches that ended, by digest."""
        spent: defaultdict[str, float] = defaultdict(float)
        for row in read_json_lines(self.path / "launches.jsonl"):
            spent[str(row["job"])[-DIGEST_LENGTH:]] += row.get("seconds", 0.0)
        return {digest: seconds for digest, seconds in spent.items() if seconds}


def _by_digest(place: Path) -> dict[str, Path]:
    """Return the folders of a folder by the digests that their names end with."""
    if not place.is_dir():
        return {}
    return {path.name[-DIGEST_LENGTH:]: path for path in sorted(place.iterdir()) if path.is_dir()}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a run.

    Raises:
        UserError: it is none.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object")
    return values


# ----------------------------------------------------------------------------------------------------- locks


def try_to_lock(folder: RunFolder) -> IO[str] | None:
    """Reserve a job for this process until the returned file is closed; None if another one has it.

    A run that outlives a sweep that was killed keeps its folder while it saves, and counts as another one.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    file = (folder.path / _LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system without locks
        return file
    try:
        folder.lock().close()
    except UserError:
        file.close()
        return None
    return file


# ---------------------------------------------------------------------------------------------- small data


def keep(job: Job, source: Path, destination: Path, rows: int | None) -> None:
    """Copy what a report needs of a finished job to ``destination / job.name``.

    That is settings without the run's path, metrics, evaluations, and finished.json as the last.

    Args:
        rows: at most so many lines of metrics.jsonl, evenly spread; None: the file as it is.

    Raises:
        UserError: it cannot be written.
    """
    run, copy = RunFolder(source), RunFolder(destination / job.name)
    if copy.finished.exists():
        return
    try:
        copy.path.mkdir(parents=True, exist_ok=True)
        settings = config.from_yaml(run.config)
        copy.write_text(
            copy.config, config.to_yaml(replace(settings, run_dir=None, resume=None, stop_after=None))
        )
        if rows is None:
            shutil.copyfile(run.metrics, copy.metrics)
        else:
            kept = thin(read_json_lines(run.metrics), rows)
            copy.write_text(copy.metrics, "".join(json.dumps(row) + "\n" for row in kept))
        if run.evaluations.exists() and run.evaluations.stat().st_size:
            shutil.copyfile(run.evaluations, copy.evaluations)
        for file in ("evaluation", "finished"):
            copy.write_json(getattr(copy, file), read_json(getattr(run, file)))
    except OSError as error:
        raise UserError(f"keep={destination} cannot be written ({error.strerror})") from error
