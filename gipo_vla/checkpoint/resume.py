"""Which run a session continues, and whether it may."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from gipo_envs.errors import UserError
from gipo_vla import config
from gipo_vla.checkpoint.folder import MANIFEST
from gipo_vla.checkpoint.run_folder import RunFolder, runs_root
from gipo_vla.config import SESSION_KEYS, Config

FIXED = ("env.", "policy.", "seed", "replay.segment_length", "rollout.group_size", "init_from",
         "credit.name", "credit.scorer", "credit.belief_input", "credit.match")  # fmt: skip
"""A run continued with another one of these would be another run ..."""
MOVABLE = ("env.assets", "policy.checkpoint", "policy.base_checkpoint", "policy.compile",
           "policy.activation_checkpointing")  # fmt: skip
"""... except these, which say where things lie and how a machine computes."""


@dataclass(frozen=True)
class Start:
    """How a session begins."""

    settings: Config
    folder: RunFolder | None
    """The run to continue; None: a new one."""
    changes: tuple[str, ...] = ()
    """One line for each setting that differs from the run's."""
    finished: bool = False
    """The run is finished, and nobody asked for more than that."""
    by_itself: bool = False
    """Continued by ``resume=auto`` or a restart, so the process before may just be leaving."""


def resolve(overrides: Sequence[str]) -> Start:
    """Settings and run of a command line.

    Raises:
        UserError: the run to continue does not exist, is finished, or is asked to become another run.
    """
    asked = [text.partition("=")[2].strip("'\"") for text in overrides if text.startswith("resume=")]
    if asked and asked[-1] not in ("auto", "null", ""):
        return _continue(Path(asked[-1]), [text for text in overrides if not text.startswith("resume=")])
    settings = config.load("train", overrides)
    if settings.resume != "auto" and not _restarted():
        return Start(settings, None)
    folder = _run_to_go_on_with(settings)
    if folder is None or not folder.holds_run():
        return Start(settings, None)
    start = Start(replace(settings, run_dir=str(folder.path)), folder, by_itself=True)
    if not folder.config.is_file():
        return start
    base = config.from_yaml(folder.config)
    if config.digest(base) != config.digest(settings):
        raise UserError(
            f"{folder.path} holds a run of other settings ({'; '.join(differences(base, settings))}): choose "
            f"another run_dir, or continue that run with resume={folder.path}"
        )
    return replace(start, finished=_iterations_finished(folder) >= settings.iterations)


def _continue(path: Path, overrides: Sequence[str]) -> Start:
    folder = RunFolder(path)
    if (path / MANIFEST).is_file():
        raise UserError(f"resume={path} is one checkpoint: give its run folder, {path.parent.parent}")
    if not folder.config.is_file():
        raise UserError(f"resume={path} holds no run (no config.yaml): give a run folder")
    base = replace(config.from_yaml(folder.config), stop_after=None, run_dir=str(path))
    settings = config.override(base, overrides)
    if settings.run_dir != str(path):
        raise UserError(f"resume={path} continues in that folder: leave out run_dir={settings.run_dir}")
    settings = replace(settings, resume=str(path))
    changes = differences(base, settings)
    forbidden = [line for line in changes if line.startswith(FIXED) and not line.startswith(MOVABLE)]
    if forbidden:
        raise UserError(
            f"resume={path}: {'; '.join(forbidden)} would make this another run: start it in a new run_dir"
        )
    done = _iterations_finished(folder)
    if settings.iterations <= done:
        raise UserError(
            f"{path} is finished ({done} iterations): give iterations above that to train it further"
        )
    return Start(settings, folder, tuple(changes))


def _iterations_finished(folder: RunFolder) -> int:
    """Iterations of a finished run; 0 of any other."""
    if not folder.finished.exists():
        return 0
    return int(json.loads(folder.finished.read_text())["iterations"])


def differences(old: Any, new: Any) -> list[str]:
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


# --------------------------------------------------------------------------------- going on without a name


def _restarted() -> bool:
    """torchrun started this process in the place of one that failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def _run_to_go_on_with(settings: Config) -> RunFolder | None:
    named = [RunFolder(Path(settings.run_dir))] if settings.run_dir else None
    if named and settings.resume == "auto":
        return named[0]
    # First what this very torchrun began (somebody else's folder is not taken over by a second attempt);
    # then, if asked, the newest unfinished run of the same settings.
    if _restarted():
        own = launch_record()
        for folder in named or _runs(settings):
            if folder.launch.is_file() and json.loads(folder.launch.read_text()) == own:
                return folder
    if settings.resume == "auto":
        wanted = config.digest(settings)
        for folder in _runs(settings):
            if not folder.finished.exists() and config.digest(config.from_yaml(folder.config)) == wanted:
                return folder
    return None


def _runs(settings: Config) -> Iterator[RunFolder]:
    """Runs of this experiment without a ``run_dir`` of their own, newest first."""
    for path in sorted(runs_root().glob(f"{settings.experiment}-*"), reverse=True):
        if (path / "config.yaml").is_file():
            yield RunFolder(path)


def launch_record() -> dict[str, Any]:
    """What tells a restarted rank that a run folder is its own: the torchrun that started both."""
    launcher = os.getppid()
    return {
        "host": socket.gethostname(),
        "launcher": launcher,
        "launcher_started": psutil.Process(launcher).create_time() if psutil.pid_exists(launcher) else 0.0,
        "run_id": os.environ.get("TORCHELASTIC_RUN_ID"),
    }
