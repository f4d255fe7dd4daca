"""A run's folder: choosing it, refusing one that is taken, and what lies where.

    config.yaml        settings; launch.json: what started it
    metrics.jsonl      one flat object an iteration, decided by the seed; timings.jsonl: clock readings
    evaluations.jsonl  evaluations under way; evaluation.json: the final one
    checkpoints/  videos/  learning_curve.png  report.html
    finished.json      alone marks a finished run
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from gipo_envs.errors import UserError

from gipo_vla.checkpoint import folder as folders
from gipo_vla.config import Config

SPARE_BYTES = 64 * 2**20
"""Free disk below which a run is not begun: metrics, plots, a video and a small checkpoint need about this."""


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
        self.learning_curve = path / "learning_curve.png"
        self.finished = path / "finished.json"
        self.launch = path / "launch.json"

    def holds_run(self) -> bool:
        return self.config.exists() or self.metrics.exists() or self.checkpoints.exists()

    def has_checkpoint(self) -> bool:
        return bool(folders.names(self.checkpoints))

    def write_json(self, path: Path, values: dict[str, Any]) -> None:
        """Replace a file as a whole, so that no reader sees half of it."""
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(values, indent=2) + "\n")
        os.replace(temporary, path)


def runs_root() -> Path:
    """Where runs without a ``run_dir`` go, below the current folder."""
    return Path("runs")


def default_path(config: Config) -> Path:
    return runs_root() / f"{config.experiment}-{time.strftime('%Y%m%d-%H%M%S')}"


def create(config: Config, bytes_needed: int = SPARE_BYTES) -> RunFolder:
    """The folder of a new run.

    Raises:
        UserError: it holds a run already, cannot be written, or its disk is full.
    """
    folder = RunFolder(Path(config.run_dir) if config.run_dir else default_path(config))
    if folder.holds_run():
        raise UserError(
            f"run_dir={folder.path} already holds a run: choose another run_dir, or continue that one with "
            f"resume={folder.path}"
        )
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


def check_disk(path: Path, bytes_needed: int) -> None:
    """Raise a UserError if the disk of ``path`` has too little room."""
    free = shutil.disk_usage(path).free
    if free < bytes_needed:
        raise UserError(
            f"the disk of run_dir={path} has {free / 2**20:.0f} MB free, this run needs at least "
            f"{bytes_needed / 2**20:.0f} MB: free some or choose another run_dir"
        )
