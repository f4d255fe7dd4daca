"""Which run a session continues, and whether it may."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gipo_envs.errors import UserError

from gipo_vla import config
from gipo_vla.checkpoint.run_folder import RunFolder, runs_root
from gipo_vla.config import SESSION_KEYS, Config

FIXED = ("env.", "policy.", "seed", "replay.segment_length", "rollout.envs_per_worker", "rollout.workers",
         "rollout.group_size", "credit.name")
"""A run continued with another one of these would be another run."""


@dataclass(frozen=True)
class Start:
    """How a session begins."""

    settings: Config
    folder: RunFolder | None
    """The run to continue; None: a new one."""
    changes: tuple[str, ...] = ()
    """One line for each setting that differs from the run's."""


def resolve(overrides: Sequence[str]) -> Start:
    """Settings and run of a command line.

    Raises:
        UserError: the run to continue does not exist, is finished, or is asked to become another run.
    """
    asked = [text.partition("=")[2].strip("'\"") for text in overrides if text.startswith("resume=")]
    if asked and asked[-1] not in ("auto", "null", ""):
        return _continue(Path(asked[-1]), [text for text in overrides if not text.startswith("resume=")])
    settings = config.load("train", overrides)
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    if settings.resume != "auto" and not restarted:
        return Start(settings, None)
    path = Path(settings.run_dir) if settings.run_dir else _run_of_this_launch(settings)
    if path is None or not RunFolder(path).holds_run():
        return Start(settings, None)
    folder = RunFolder(path)
    base = config.from_yaml(folder.config)
    if config.digest(base) != config.digest(settings):
        changes = "; ".join(differences(base, settings))
        raise UserError(f"{path} holds a run of other settings ({changes}): choose another run_dir")
    if not folder.has_checkpoint():
        return Start(settings, None)  # killed before its first checkpoint: begin again
    _refuse_finished(folder, settings)
    return Start(replace(settings, run_dir=str(path)), folder)


def _continue(path: Path, overrides: Sequence[str]) -> Start:
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise UserError(f"resume={path} holds no run (no config.yaml): give a run folder")
    if not folder.has_checkpoint():
        raise UserError(f"resume={path} holds no checkpoint yet: start the run again with another run_dir")
    base = config.from_yaml(folder.config)
    settings = config.override(replace(base, stop_after=None), overrides)
    settings = replace(settings, run_dir=str(path), resume=str(path))
    changes = differences(base, settings)
    forbidden = [line for line in changes if line.startswith(FIXED)]
    if forbidden:
        raise UserError(
            f"resume={path}: {'; '.join(forbidden)} would make this another run: start it in a new run_dir"
        )
    _refuse_finished(folder, settings)
    return Start(settings, folder, tuple(changes))


def _refuse_finished(folder: RunFolder, settings: Config) -> None:
    if not folder.finished.exists():
        return
    done = json.loads(folder.finished.read_text())["iterations"]
    if settings.iterations <= done:
        raise UserError(
            f"{folder.path} is finished ({done} iterations): give iterations above that to train it further"
        )


def differences(old: Config, new: Config) -> list[str]:
    """``key: old -> new`` for every setting of the run that differs."""
    before, after = _flat(config.to_dict(old)), _flat(config.to_dict(new))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in SESSION_KEYS
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


# ------------------------------------------------------------------------------------ restarts by torchrun


def launch_record() -> dict[str, Any]:
    """What tells a restarted rank that a run folder is its own: the torchrun that started both."""
    return {
        "host": socket.gethostname(),
        "launcher": os.getppid(),
        "run_id": os.environ.get("TORCHELASTIC_RUN_ID"),
    }


def _run_of_this_launch(settings: Config) -> Path | None:
    """The folder that ranks of this same torchrun began before it restarted them."""
    for record in sorted(runs_root().glob(f"{settings.experiment}-*/launch.json"), reverse=True):
        if json.loads(record.read_text()) == launch_record():
            return record.parent
    return None
