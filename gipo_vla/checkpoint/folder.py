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
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from gipo_envs.errors import UserError
from gipo_vla import foreign

MANIFEST = "manifest.json"
LATEST = "latest"
_PARTIAL = ".partial-"
_REMOVED = ".removed-"
_DAMAGED = "damaged-"
_NAME = re.compile(r"(\d{6,})-(\d{7,})(?:-(\d+))?")

FileRecord = dict[str, Any]
"""``sha256`` and ``bytes`` of one file."""


def _numbers(name: str) -> tuple[int, int, int] | None:
    """Iterations, updates and copy number of a checkpoint's name; None for any other name."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2]), int(match[3] or 1)) if match else None


def names(checkpoints: Path) -> list[str]:
    """Names of the complete checkpoints, newest first."""
    found = {path.name: _numbers(path.name) for path in checkpoints.glob("*/")}
    return sorted((name for name in found if found[name]), key=lambda name: found[name] or (), reverse=True)


def new_name(checkpoints: Path, iteration: int, updates: int) -> str:
    """A name that no checkpoint has, damaged ones included (the same state is saved twice where a run goes
    on with another number of ranks)."""
    plain = f"{iteration:06d}-{updates:07d}"
    candidates = itertools.chain([plain], (f"{plain}-{copy}" for copy in itertools.count(2)))
    return next(name for name in candidates if not (checkpoints / name).exists())


def partial_folder(checkpoints: Path, name: str) -> Path:
    """Where a checkpoint is written before it is complete."""
    return checkpoints / f"{_PARTIAL}{name}"


def prepare(checkpoints: Path, name: str) -> Path:
    """Create the folder to write into, without leftovers of a process that was killed."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(checkpoints)
    folder = partial_folder(checkpoints, name)
    folder.mkdir()
    return folder


def _remove_leftovers(checkpoints: Path) -> None:
    for leftover in itertools.chain(checkpoints.glob(f"{_PARTIAL}*"), checkpoints.glob(f"{_REMOVED}*")):
        shutil.rmtree(leftover, ignore_errors=True)


def record(path: Path) -> FileRecord:
    """Force a file to disk and take its checksum."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def seal(checkpoints: Path, name: str, manifest: Mapping[str, FileRecord]) -> None:
    """Give a checkpoint whose files are written its manifest and its name; then point ``latest`` to it."""
    partial = partial_folder(checkpoints, name)
    write_synced(partial / MANIFEST, json.dumps(dict(sorted(manifest.items())), indent=1))
    for folder in {(partial / file).parent for file in manifest} | {partial}:
        _sync_folder(folder)
    # Written before the folder gets its name: from there on nothing needs room on the disk.
    temporary = _next_latest(checkpoints, name)
    partial.rename(checkpoints / name)
    _sync_folder(checkpoints)
    temporary.replace(checkpoints / LATEST)
    _sync_folder(checkpoints)


def _next_latest(checkpoints: Path, name: str) -> Path:
    """``latest``, written beside the one that is there."""
    temporary = checkpoints / f".{LATEST}"
    write_synced(temporary, name + "\n")
    return temporary


def prune(checkpoints: Path, keep: int, milestone: int | None = None) -> None:
    """Remove all but the newest ``keep``, and damaged ones that were set aside.

    Args:
        milestone: the first checkpoint of every iteration that is a multiple of this stays, too.
    """
    _remove([*_surplus(checkpoints, keep, milestone), *checkpoints.glob(f"{_DAMAGED}*")])


def settle(checkpoints: Path, keep: int, milestone: int | None = None) -> None:
    """Complete what a process that was killed after its last checkpoint had its name left undone: ``latest``,
    and removing old ones (``keep``, ``milestone``: see ``prune``). A run that goes on from its last
    checkpoint may have no other to write.
    """
    _remove_leftovers(checkpoints)
    _next_latest(checkpoints, names(checkpoints)[0]).replace(checkpoints / LATEST)
    _remove(_surplus(checkpoints, keep, milestone))


def _surplus(checkpoints: Path, keep: int, milestone: int | None) -> list[Path]:
    """What ``prune`` removes of the complete ones."""
    every = names(checkpoints)
    kept = set(every[:keep])
    if milestone is not None:
        # Newest first: of one iteration the oldest, written last here, stays.
        first = {iteration: name for name in every for iteration, *_ in [_numbers(name) or (0,)]}
        kept |= {name for iteration, name in first.items() if iteration and iteration % milestone == 0}
    return [checkpoints / name for name in every if name not in kept]


def _remove(checkpoints: Iterable[Path]) -> None:
    for folder in checkpoints:
        # Renamed first: half a checkpoint must not bear a checkpoint's name.
        away = folder.rename(folder.with_name(f"{_REMOVED}{folder.name}"))
        shutil.rmtree(away, ignore_errors=True)


def write_synced(path: Path, text: str) -> None:
    """Write a file, and force it to disk."""
    with foreign.text_stream(path) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint: the first file that is missing, cut short or changed; None if all of
    them are as the manifest says."""
    try:
        manifest = foreign.read_json(folder / MANIFEST)
        expected = [(name, int(facts["bytes"]), str(facts["sha256"])) for name, facts in manifest.items()]
    except (UserError, ValueError, KeyError, TypeError, ArithmeticError):
        return f"{folder}: {MANIFEST} is missing or unreadable"
    if not expected:
        return f"{folder}: {MANIFEST} names no file"
    for name, size, digest in expected:
        path = folder / name
        parts = PurePath(name).parts
        if PurePath(name).is_absolute() or ".." in parts or "/".join(parts) != name:
            return f"{folder}: {MANIFEST} names {name!r}, which is no file of the checkpoint"
        try:
            with foreign.open_regular(path) as file:
                found_size = os.fstat(file.fileno()).st_size
                if found_size != size:
                    return f"{path} has {found_size} bytes instead of {size}"
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except UserError as error:
            return str(error)
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
        if found != digest:
            return f"{path} does not have the checksum of its manifest"
    return None


def newest_valid(checkpoints: Path) -> tuple[Path, list[str]]:
    """The newest undamaged checkpoint, and what is wrong with those passed over. Raises UserError: there is
    none."""
    problems: list[str] = []
    for name in names(checkpoints):
        problem = damage(checkpoints / name)
        if problem is None:
            return checkpoints / name, problems
        problems.append(problem)
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
