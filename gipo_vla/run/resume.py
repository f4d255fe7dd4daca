"""Which run a command line resumes, and what it may change about it: one rule for training and cloning."""

from __future__ import annotations

import operator
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil

from gipo_envs.errors import UserError
from gipo_vla import foreign
from gipo_vla.checkpoint.folder import MANIFEST
from gipo_vla.checkpoint.run_folder import RunFolder, runs_root
from gipo_vla.settings import plugins, registry, runs
from gipo_vla.settings.cloning import SftSettings
from gipo_vla.settings.composition import command_of
from gipo_vla.settings.runs import SESSION_KEYS, RunSettings, may_change
from gipo_vla.settings.schema import TrainingSettings

Settings = TypeVar("Settings", TrainingSettings, SftSettings)


def differences(old: Any, new: Any, added: bool = True) -> dict[str, str]:
    """Every setting of the run that differs: ``key: old -> new`` by key.

    Args:
        old: settings, or the plain values that a folder holds.
        added: whether a setting that only one of them has differs (a later version has more settings).
    """
    before, after = registry.flat(runs.to_dict(old)), registry.flat(runs.to_dict(new))
    compared = before.keys() | after.keys() if added else before.keys() & after.keys()
    return {
        key: f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(compared - set(SESSION_KEYS))
        if before.get(key) != after.get(key)
    }


@dataclass(frozen=True)
class Start(Generic[Settings]):
    """How a process begins: with a new run, or by resuming one."""

    settings: Settings
    folder: RunFolder | None = None
    """The run to resume; None: a new one."""
    changes: tuple[str, ...] = ()
    """One line for each setting that differs from the run's."""
    finished: bool = False
    """The run is finished, and nobody asked for more than that."""
    by_itself: bool = False
    """Resumed by ``resume=auto`` or a restart, so the process before may just be leaving."""


def resolve(kind: type[Settings], overrides: Sequence[str]) -> Start[Settings]:
    """Settings and run of a command line. Raises UserError: a setting is wrong, or the run to resume does not
    exist, is finished, or is asked to become another run."""
    plugins.load(plugins.named_in(overrides))
    others = [text for text in overrides if not text.startswith("resume=")]
    asked = [text.partition("=")[2].strip("'\"") for text in overrides if text not in others]
    if asked and asked[-1] not in ("auto", "null", ""):
        return _resume(kind, Path(asked[-1]), others)
    settings: Any = runs.load_sft(overrides) if kind is SftSettings else runs.load("train", overrides)
    folder = _run_without_a_name(settings)
    if folder is None or not folder.holds_run():
        return Start(settings)
    folder.check()
    start = Start(replace(settings, run_dir=str(folder.path)), folder, by_itself=True)
    if not folder.config.is_file():
        return start
    base = _settings_of(folder, kind)
    if runs.digest(base) != runs.digest(settings):
        changes = "; ".join(differences(base, settings).values())
        raise UserError(
            f"{folder.path} holds a run of other settings ({changes}): choose another run_dir, or resume "
            f"that run with resume={folder.path}"
        )
    return replace(start, finished=_refusal(folder, base, settings) is not None)


def _resume(kind: type[Settings], path: Path, overrides: Sequence[str]) -> Start[Settings]:
    folder = RunFolder(path)
    folder.check()
    if (path / MANIFEST).is_file():
        raise UserError(f"resume={path} is one checkpoint: give its run folder, {path.parent.parent}")
    if not folder.config.is_file():
        raise UserError(f"resume={path} holds no run (no config.yaml): give a run folder")
    base = replace(_settings_of(folder, kind), stop_after=None, run_dir=str(path))
    settings = runs.override(base, overrides)
    if settings.run_dir != str(path):
        raise UserError(f"resume={path} resumes in that folder: leave out run_dir={settings.run_dir}")
    settings = replace(settings, resume=str(path))
    changes = differences(base, settings)
    if forbidden := [line for key, line in changes.items() if not may_change(base, key)]:
        raise UserError(
            f"resume={path}: {'; '.join(forbidden)} would make this another run: start it in a new run_dir"
        )
    if refusal := _refusal(folder, base, settings):
        raise UserError(f"resume={path} {refusal}")
    return Start(settings, folder, tuple(changes.values()))


def _settings_of(folder: RunFolder, kind: type[Settings]) -> Settings:
    """A run's settings; a UserError for a run of another command."""
    found = runs.read_run(folder.config)
    if not isinstance(found, kind):
        raise UserError(
            f"{folder.path} is a run of python -m gipo_vla.{command_of(found)}: resume it with that command"
        )
    return found


def _refusal(folder: RunFolder, base: RunSettings, settings: RunSettings) -> str | None:
    """Why there is nothing left to do in a finished run; None if there is."""
    if not folder.finished.exists():
        return None
    if isinstance(settings, SftSettings):
        assert isinstance(base, SftSettings)
        return None if settings.sft != base.sft else "is finished: give a larger sft.steps to clone further"
    with foreign.understood(folder.finished):
        done = operator.index(foreign.read_json(folder.finished)["iterations"])
    if settings.iterations > done:
        return None
    return f"is finished ({done} iterations): give iterations above that to train it further"


def _run_without_a_name(settings: RunSettings) -> RunFolder | None:
    """The run that ``resume=auto`` or a restart means; None: a new one."""
    named = [RunFolder(Path(settings.run_dir))] if settings.run_dir else None
    if named and settings.resume == "auto":
        return named[0]
    # First what this very torchrun began (somebody else's folder is not taken over by a second attempt);
    # then, if asked, the newest unfinished run of the same settings.
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0:
        own = launch_record()
        for folder in named or _runs(settings):
            with suppress(UserError):  # a damaged one is not this torchrun's
                if folder.launch.is_file() and foreign.read_json(folder.launch) == own:
                    return folder
    if settings.resume == "auto":
        wanted = runs.digest(settings)
        for folder in _runs(settings):
            with suppress(UserError):  # a damaged run, or one with plugins that this command does not name
                if not folder.finished.exists() and runs.digest(runs.read_run(folder.config)) == wanted:
                    return folder
    return None


def _runs(settings: RunSettings) -> Iterator[RunFolder]:
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
