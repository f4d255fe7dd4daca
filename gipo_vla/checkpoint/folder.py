"""Checkpoint folders: written aside, checksummed, synced, renamed; ``latest`` replaced last.

    checkpoints/
      000120-0001440/         iterations and updates done
        manifest.json         SHA-256 and size of every other file
        ...
      latest                  the newest complete one's name, for people and scripts

A folder that is being written or removed has another name, and no folder is ever replaced by another, so a
process may be killed at any instant. One whose files do not match its manifest is damaged: it is named, and
the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gipo_envs.errors import UserError

MANIFEST = "manifest.json"
LATEST = "latest"
_PARTIAL = ".partial-"
_REMOVED = ".removed-"
_DAMAGED = "damaged-"
_NAME = re.compile(r"(\d{6,})-(\d{7,})(?:-(\d+))?")

FileRecord = dict[str, Any]
"""``sha256`` and ``bytes`` of one file."""


class DamagedCheckpointError(RuntimeError):
    """A checkpoint that does not match its manifest; the message says where."""


# -------------------------------------------------------------------------------------------------- names


def _numbers(name: str) -> tuple[int, int, int] | None:
    """Iterations, updates and copy number of a checkpoint's name; None for any other name."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2]), int(match[3] or 1)) if match else None


def names(checkpoints: Path) -> list[str]:
    """Names of the complete checkpoints, newest first."""
    if not checkpoints.is_dir():
        return []
    found = [path.name for path in checkpoints.iterdir() if _numbers(path.name) and path.is_dir()]
    return sorted(found, key=lambda name: _numbers(name) or (), reverse=True)


def new_name(checkpoints: Path, iteration: int, updates: int) -> str:
    """A name that no checkpoint has, damaged ones included (the same state is saved twice where a run goes
    on with another number of ranks)."""
    plain = name = f"{iteration:06d}-{updates:07d}"
    copy = 1
    while (checkpoints / name).exists():
        copy += 1
        name = f"{plain}-{copy}"
    return name


# ------------------------------------------------------------------------------------------------ writing


def partial_folder(checkpoints: Path, name: str) -> Path:
    """Where a checkpoint is written before it is complete."""
    return checkpoints / f"{_PARTIAL}{name}"


def prepare(checkpoints: Path, name: str) -> Path:
    """Create the folder to write into, without leftovers of a process that was killed."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    for prefix in (_PARTIAL, _REMOVED):
        for leftover in checkpoints.glob(f"{prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)
    folder = partial_folder(checkpoints, name)
    folder.mkdir()
    return folder


def discard(checkpoints: Path, name: str) -> None:
    """Remove what was written for a checkpoint that cannot be completed."""
    shutil.rmtree(partial_folder(checkpoints, name), ignore_errors=True)


def record(path: Path) -> FileRecord:
    """Force a file to disk and take its checksum."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def seal(checkpoints: Path, name: str, manifest: Mapping[str, FileRecord]) -> Path:
    """Give a checkpoint whose files are written its manifest and its name; then point ``latest`` to it."""
    partial, final = partial_folder(checkpoints, name), checkpoints / name
    _write_synced(partial / MANIFEST, json.dumps(dict(sorted(manifest.items())), indent=1))
    for folder in {(partial / file).parent for file in manifest} | {partial}:
        _sync_folder(folder)
    # Written before the folder gets its name: from there on nothing needs room on the disk.
    temporary = checkpoints / f".{LATEST}"
    _write_synced(temporary, name + "\n")
    partial.rename(final)
    _sync_folder(checkpoints)
    temporary.replace(checkpoints / LATEST)
    _sync_folder(checkpoints)
    return final


def prune(checkpoints: Path, keep: int, milestone: int | None = None) -> None:
    """Remove all but the newest ``keep``, and damaged ones that were set aside.

    Args:
        milestone: the first checkpoint of every iteration that is a multiple of this stays, too.
    """
    every = names(checkpoints)
    kept = set(every[:keep])
    if milestone is not None:
        first: dict[int, str] = {}
        for name in every:  # newest first: the last one written here is the oldest
            iteration, *_ = _numbers(name) or (0,)
            if iteration and iteration % milestone == 0:
                first[iteration] = name
        kept |= set(first.values())
    doomed = [checkpoints / name for name in every if name not in kept]
    for folder in [*doomed, *checkpoints.glob(f"{_DAMAGED}*")]:
        # Renamed first: half a checkpoint must not bear a checkpoint's name.
        away = folder.rename(checkpoints / f"{_REMOVED}{folder.name}")
        shutil.rmtree(away, ignore_errors=True)


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


# ------------------------------------------------------------------------------------------------ reading


def verify(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        DamagedCheckpointError: naming the first file that is missing, cut short or changed.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected = [(name, int(facts["bytes"]), str(facts["sha256"])) for name, facts in manifest.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{folder}: {MANIFEST} is missing or unreadable") from error
    for name, size, digest in expected:
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpointError(f"{path} is missing")
        if path.stat().st_size != size:
            raise DamagedCheckpointError(f"{path} has {path.stat().st_size} bytes instead of {size}")
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DamagedCheckpointError(f"{path} cannot be read: {error.strerror}") from error
        if found != digest:
            raise DamagedCheckpointError(f"{path} does not have the checksum of its manifest")


def newest_valid(checkpoints: Path) -> tuple[Path, list[str]]:
    """The newest undamaged checkpoint, and what is wrong with those passed over.

    Raises:
        UserError: there is none.
    """
    problems: list[str] = []
    for name in names(checkpoints):
        try:
            verify(checkpoints / name)
        except DamagedCheckpointError as error:
            problems.append(str(error))
            continue
        return checkpoints / name, problems
    detail = f" ({'; '.join(problems)})" if problems else ""
    raise UserError(f"{checkpoints} holds no usable checkpoint{detail}")


def set_aside_newer(checkpoints: Path, chosen: str) -> None:
    """Rename the damaged checkpoints newer than ``chosen``, so that they neither count as kept ones nor stand
    in the way of those that will be written again."""
    for name in names(checkpoints):
        if name == chosen:
            return
        aside = checkpoints / f"{_DAMAGED}{name}"
        shutil.rmtree(aside, ignore_errors=True)
        (checkpoints / name).rename(aside)
