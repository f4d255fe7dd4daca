"""Which checkpoint a user means by a path."""

from __future__ import annotations

from pathlib import Path

from gipo_envs.errors import UserError
from gipo_vla.checkpoint import folder as folders
from gipo_vla.checkpoint.policy_files import POLICY_FILE
from gipo_vla.telemetry.console import console


def find_checkpoint(path: Path, setting: str = "checkpoint") -> Path:
    """The folder of the checkpoint that ``setting=path`` names.

    Args:
        path: a run folder, of which the newest usable checkpoint is taken, or one checkpoint's folder.
        setting: for messages.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if not path.is_dir():
        raise UserError(f"{setting}={path} is no folder: give a run folder or one of its checkpoints")
    if (path / POLICY_FILE).exists():
        try:
            folders.verify(path)
        except folders.DamagedCheckpointError as error:
            raise UserError(f"{setting}={path} is damaged: {error}") from error
        return path
    if not (path / "checkpoints").is_dir():
        raise UserError(
            f"{setting}={path} holds no checkpoints/: give a run folder or one of its checkpoints"
        )
    found, problems = folders.newest_valid(path / "checkpoints")
    for problem in problems:
        console.print(f"passed over a damaged checkpoint: {problem}")
    return found
