"""Checkpoint folders: written aside, checksummed, synced, renamed; ``latest`` replaced last.

    checkpoints/
      000120-01440/           iteration and updates done
        manifest.json         SHA-256 and size of every other file
        ...
      latest                  the newest complete one's name

A folder without a manifest, or whose files do not match it, is damaged: it is named and the one before it is
used. A folder that is being written has another name until it is complete, so a process may be killed at any
instant.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from gipo_envs.errors import UserError

MANIFEST = "manifest.json"
LATEST = "latest"
_PARTIAL = ".partial-"


class DamagedCheckpoint(RuntimeError):
    """A checkpoint that does not match its manifest; the message says where."""


def name_of(iteration: int, updates: int) -> str:
    """Sorts by time."""
    return f"{iteration:06d}-{updates:07d}"


def partial_folder(checkpoints: Path, name: str) -> Path:
    """Where a checkpoint is written before it is complete (not created here)."""
    return checkpoints / f"{_PARTIAL}{name}"


def prepare(checkpoints: Path, name: str) -> Path:
    """Create the folder to write into, without leftovers of a process that was killed."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    for leftover in checkpoints.glob(f"{_PARTIAL}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    folder = partial_folder(checkpoints, name)
    folder.mkdir()
    return folder


def complete(checkpoints: Path, name: str) -> Path:
    """Checksum, sync and rename what was written for ``name``, then point ``latest`` to it."""
    partial, final = partial_folder(checkpoints, name), checkpoints / name
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    manifest = {}
    for path in files:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        manifest[path.relative_to(partial).as_posix()] = {
            "sha256": _digest(path),
            "bytes": path.stat().st_size,
        }
    _write_synced(partial / MANIFEST, json.dumps(manifest, indent=1))
    for folder in {path.parent for path in files} | {partial}:
        _sync_folder(folder)
    if final.exists():  # the same state saved again, after a resume
        shutil.rmtree(final)
    os.rename(partial, final)
    _sync_folder(checkpoints)
    temporary = checkpoints / f".{LATEST}"
    _write_synced(temporary, name + "\n")
    os.replace(temporary, checkpoints / LATEST)
    _sync_folder(checkpoints)
    return final


def names(checkpoints: Path) -> list[str]:
    """Names of the complete-looking checkpoints, newest first."""
    if not checkpoints.is_dir():
        return []
    found = (path.name for path in checkpoints.iterdir() if path.is_dir())
    return sorted((name for name in found if not name.startswith(".")), reverse=True)


def verify(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        DamagedCheckpoint: naming the first file that is missing, cut short or changed.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{folder}: {MANIFEST} is missing or unreadable") from error
    for name, facts in manifest.items():
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpoint(f"{path} is missing")
        if path.stat().st_size != facts["bytes"]:
            raise DamagedCheckpoint(f"{path} has {path.stat().st_size} bytes instead of {facts['bytes']}")
        if _digest(path) != facts["sha256"]:
            raise DamagedCheckpoint(f"{path} does not have the checksum of its manifest")


def newest_valid(checkpoints: Path) -> tuple[Path, list[str]]:
    """The newest undamaged checkpoint, and what is wrong with those passed over.

    Raises:
        UserError: there is none.
    """
    problems: list[str] = []
    for name in names(checkpoints):
        try:
            verify(checkpoints / name)
        except DamagedCheckpoint as error:
            problems.append(str(error))
            continue
        return checkpoints / name, problems
    detail = f" ({'; '.join(problems)})" if problems else ""
    raise UserError(f"{checkpoints} holds no usable checkpoint{detail}")


def prune(checkpoints: Path, keep: int, keep_always: Iterable[str] = ()) -> None:
    """Remove all but the newest ``keep`` and those named."""
    for name in set(names(checkpoints)[keep:]) - set(keep_always):
        shutil.rmtree(checkpoints / name, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
