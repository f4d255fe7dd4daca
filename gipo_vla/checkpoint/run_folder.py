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
import shutil
import time
from pathlib import Path
from typing import IO, Any

from gipo_envs.errors import UserError
from gipo_vla import foreign
from gipo_vla.checkpoint import folder as folders
from gipo_vla.settings.schema import AnyRunSettings
from gipo_vla.telemetry.metrics import is_being_written

SPARE_BYTES = 64 * 2**20
"""Free disk below which a run is not begun: metrics, plots, a video, a small checkpoint need about this."""


FILE_SUFFIXES = (".json", ".jsonl", ".yaml", ".html", ".png", ".tmp")
_PROBE = ".writable"
HIDDEN_FILES = (".lock", ".sweep.lock", _PROBE)
FOLDERS = ("checkpoints", "videos", "graphs", "report", "wandb")


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

    def check(self) -> None:
        """Raise a UserError if the folder holds a link at any depth, a folder in a file's place, or the other
        way round: a run writes to what it finds here by name."""
        if not self.path.is_dir():
            return
        foreign.check_folder(self.path)
        for path in self.path.iterdir():
            for_file = path.name in HIDDEN_FILES or path.suffix in FILE_SUFFIXES
            if path.is_dir() if for_file else path.name in FOLDERS and not path.is_dir():
                wanted = "file" if for_file else "folder"
                raise UserError(f"{path} is no {wanted}, as it is in the folder of a run: remove it")

    def remove_leftovers(self) -> None:
        """Remove temporary files of processes that were killed. Only for who has the lock."""
        (self.path / _PROBE).unlink(missing_ok=True)
        for path in [*self.path.glob(".*.tmp"), *self.graphs.glob(".*.tmp")]:
            if path.is_file() and not is_being_written(path):  # a report on the run may be
                path.unlink(missing_ok=True)

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
        folders.write_synced(temporary, text)
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
        file = foreign.text_stream(self.path / ".lock")
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


def runs_root() -> Path:
    """Where runs without a ``run_dir`` go, below the current folder."""
    return Path("runs")


def create(settings: AnyRunSettings) -> RunFolder:
    """The folder of a new run. Raises UserError: it holds a run already, cannot be written, or its disk is
    full."""
    if settings.run_dir:
        folder = RunFolder(Path(settings.run_dir))
    else:
        plain = runs_root() / f"{settings.experiment}-{time.strftime('%Y%m%d-%H%M%S')}"
        # Seeds are started in the same second.
        numbered = (plain.with_name(f"{plain.name}-{number}") for number in itertools.count(2))
        paths = itertools.chain([plain], numbered)
        folder = RunFolder(next(path for path in paths if not path.exists()))
    refuse_taken(folder)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.path).free
        if free < SPARE_BYTES:
            raise UserError(
                f"the disk of run_dir={folder.path} has {free / 2**20:.0f} MB free, this run needs at least "
                f"{SPARE_BYTES / 2**20:.0f} MB: free some or choose another run_dir"
            )
        folder.check()
        (folder.path / _PROBE).touch()
        (folder.path / _PROBE).unlink()
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
