"""A run's folder: choosing it, refusing one that is taken, and what lies where.

config.yaml        settings; launch.json: what started it
metrics.jsonl      one flat object an iteration, decided by the seed; timings.jsonl: clock readings
evaluations.jsonl  evaluations under way; evaluation.json: the final one
checkpoints/  videos/  learning_curve.png  report.html
graphs/            with credit=graph: a few graphs of states, for the report
finished.json      alone marks a finished run
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import time
from pathlib import Path
from typing import IO, Any, Protocol

from gipo_envs.errors import UserError
from gipo_vla.checkpoint import folder as folders

SPARE_BYTES = 64 * 2**20
"""Free disk below which a run is not begun: metrics, plots, a video, a small checkpoint need about this."""


class RunFolder:
    """Paths within a run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.timings = path / "timings.jsonl"
        self.evaluations = path / "evaluations.jsonl"
        self.evaluation = path / "evaluation.json"
        self.checkpoints = path / "checkpoints"
        self.videos = path / "videos"
        self.graphs = path / "graphs"
        self.learning_curve = path / "learning_curve.png"
        self.finished = path / "finished.json"
        self.launch = path / "launch.json"

    def holds_run(self) -> bool:
        return self.config.exists() or self.metrics.exists() or self.checkpoints.exists()

    def has_checkpoint(self) -> bool:
        return bool(folders.names(self.checkpoints))

    def write_json(self, path: Path, values: dict[str, Any]) -> None:
        """See ``write_text``."""
        self.write_text(path, json.dumps(values, indent=2) + "\n")

    def write_text(self, path: Path, text: str) -> None:
        """Replace a file as a whole, on disk: no reader and no crash ever sees half of it."""
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def lock(self, patience: float = 0.0) -> IO[str]:
        """Keep other processes out as long as the returned file is open (also from another machine, where
        the file system can do that).

        Args:
            patience: seconds to wait for a process that is about to leave or was just killed.

        Raises:
            UserError: another process has the folder.
        """
        deadline = time.monotonic() + patience
        file = (self.path / ".lock").open("w")
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.close()
                    raise UserError(
                        f"run_dir={self.path} is being written by another process: wait for it, or choose "
                        "another run_dir"
                    ) from None
                time.sleep(0.5)
            except OSError:  # a file system without locks
                return file


class NamedRun(Protocol):
    """Settings of a run of any kind."""

    @property
    def experiment(self) -> str: ...
    @property
    def run_dir(self) -> str | None: ...


def runs_root() -> Path:
    """Where runs without a ``run_dir`` go, below the current folder."""
    return Path("runs")


def default_path(config: NamedRun) -> Path:
    return runs_root() / f"{config.experiment}-{time.strftime('%Y%m%d-%H%M%S')}"


def _unused(path: Path) -> Path:
    """``path``, or with a number behind it: seeds are started in the same second."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([path], numbered) if not candidate.exists())


def create(config: NamedRun, bytes_needed: int = SPARE_BYTES) -> RunFolder:
    """The folder of a new run.

    Raises:
        UserError: it holds a run already, cannot be written, or its disk is full.
    """
    folder = RunFolder(Path(config.run_dir) if config.run_dir else _unused(default_path(config)))
    refuse_taken(folder)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        check_disk(folder.path, bytes_needed)
        (folder.path / ".writable").touch()
        (folder.path / ".writable").unlink()
    except OSError as error:
        raise UserError(
            f"run_dir={folder.path} cannot be written ({error.strerror}): choose another run_dir"
        ) from error
    return folder


def refuse_taken(folder: RunFolder) -> None:
    """Raise a UserError if a folder that is meant for a new run holds one already."""
    if folder.holds_run():
        raise UserError(
            f"run_dir={folder.path} already holds a run: choose another run_dir, or resume that one with "
            f"resume={folder.path}"
        )


def check_disk(path: Path, bytes_needed: int) -> None:
    """Raise a UserError if the disk of ``path`` has too little room."""
    free = shutil.disk_usage(path).free
    if free < bytes_needed:
        raise UserError(
            f"the disk of run_dir={path} has {free / 2**20:.0f} MB free, this run needs at least "
            f"{bytes_needed / 2**20:.0f} MB: free some or choose another run_dir"
        )
