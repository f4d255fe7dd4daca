"""Writing checkpoints while the run continues.

The state is copied in memory between two updates; a thread of every rank then writes, syncs and checksums its
own files. Between updates the ranks agree on whether all of them are done, and rank 0 gives the folder its
manifest and its name. So a checkpoint is whole or absent, and a rank that cannot write (a full disk) neither
stops the others nor leaves half a checkpoint behind.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TypeVar, cast

import psutil

from gipo_vla.checkpoint import folder as folders
from gipo_vla.checkpoint.folder import FileRecord
from gipo_vla.distributed import group
from gipo_vla.telemetry.console import say

Result = TypeVar("Result")
Write = Callable[[Path], None]
"""Writes one file, or the files of one folder, at a path that does not exist yet."""

WORTH_A_LINE = 2**28
"""Bytes from which on the beginning of a save is announced, too."""
PROGRESS_SECONDS = 5.0


@dataclass(frozen=True)
class Content:
    """What one rank contributes to a checkpoint."""

    files: Mapping[str, Write]
    """By path within the checkpoint, a file or a folder."""
    bytes: int
    """About what they will take."""


def fits_in_memory(bytes_needed: int) -> bool:
    """Whether every rank can copy so much: half of what is free, shared by the ranks of a machine.

    A collective call. Where it says no, a checkpoint is written from the live state while the run waits.
    """
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    share = psutil.virtual_memory().available / 2 / local_ranks
    return all(group.gather(bytes_needed < share))


def _in_thread(function: Callable[[], Result]) -> Future[Result]:
    """Call in a thread that does not keep the process alive, as an executor's would where a disk hangs."""
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    return future


def _write(folder: Path, content: Content) -> dict[str, FileRecord]:
    """Write a rank's part of a checkpoint; returns its part of the manifest."""
    # safetensors gives its files to their owner alone: they shall be as open as the folder.
    mode = folder.stat().st_mode & 0o666
    manifest = {}
    for name, write in content.files.items():
        path = folder / name
        write(path)
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            file.chmod(mode)
            manifest[file.relative_to(folder).as_posix()] = folders.record(file)
    return manifest


@dataclass(frozen=True)
class _Job:
    """One checkpoint on its way to disk."""

    name: str
    written: Future[dict[str, FileRecord]]
    """This rank's part."""
    background: bool
    began: float = field(default_factory=time.monotonic)


class CheckpointWriter:
    """Writes one checkpoint at a time. Every method but ``busy`` is a collective call.

    Args:
        keep, milestone: see ``folder.prune``.
    """

    def __init__(self, checkpoints: Path, keep: int, milestone: int | None = None) -> None:
        self.checkpoints, self.keep, self.milestone = checkpoints, keep, milestone
        self.newest: str | None = None
        """Name of the newest complete checkpoint of this session."""
        self.failed = False
        """The last attempt left no checkpoint."""
        self._job: _Job | None = None

    @property
    def busy(self) -> bool:
        """A checkpoint is being written (the same answer on every rank)."""
        return self._job is not None

    def go_on_from(self, name: str) -> None:
        """Take over a folder of which this is the newest checkpoint, from a process that may have been
        killed."""
        self.newest = name
        if group.rank() == 0:
            with suppress(OSError):
                folders.settle(self.checkpoints, self.keep, self.milestone)

    def begin(self, iteration: int, updates: int, content: Content, background: bool = True) -> None:
        """Start to write a checkpoint, after the one that is being written.

        Args:
            background: ``content`` holds copies; otherwise all of it is written before this returns.
        """
        self.wait()
        name, problem = "", None
        if group.rank() == 0:
            try:
                name = folders.new_name(self.checkpoints, iteration, updates)
                folders.prepare(self.checkpoints, name)
            except OSError as error:
                problem = str(error)
        name, problem = group.from_first((name, problem))
        if problem is not None:
            self._fail(name, [problem])
            return
        total = sum(group.gather(content.bytes))
        if total >= WORTH_A_LINE:
            say(f"checkpoint {name}: writing {_size(total)}")
        written = _in_thread(partial(_write, folders.partial_folder(self.checkpoints, name), content))
        self._job = _Job(name, written, background)
        if not background:
            self.wait()

    def poll(self) -> None:
        """Complete the checkpoint that is being written if all ranks are done with it."""
        if self._job is not None and all(group.gather(self._job.written.done())):
            self._complete(self._job)

    def wait(self) -> None:
        """Complete the checkpoint that is being written, when all ranks are done with it."""
        job = self._job
        if job is None:
            return
        while futures.wait([job.written], PROGRESS_SECONDS).not_done:
            if group.rank() == 0:
                own = folders.partial_folder(self.checkpoints, job.name)
                written = sum(path.stat().st_size for path in own.rglob("*"))
                say(f"checkpoint {job.name}: {_size(written)} written so far")
        group.barrier()
        self._complete(job)

    def _complete(self, job: _Job) -> None:
        self._job = None
        error = job.written.exception()
        problem = None if error is None else f"rank {group.rank()}: {error or repr(error)}"
        parts = group.gather((job.written.result() if error is None else {}, problem))
        problems = [told for _, told in parts if told is not None]
        manifest = {name: facts for own, _ in parts for name, facts in own.items()}
        if not problems:
            problems = self._seal(job, manifest)
        if problems:
            self._fail(job.name, problems)
        else:
            self.newest, self.failed = job.name, False
            seconds = time.monotonic() - job.began
            size = _size(sum(facts["bytes"] for facts in manifest.values()))
            how = "in the background" if job.background else "the run waited"
            say(f"checkpoint {job.name}: {size} in {seconds:.1f} s, {how}")
        if error is not None and not isinstance(error, OSError):
            raise error

    def _seal(self, job: _Job, manifest: Mapping[str, FileRecord]) -> list[str]:
        """Rank 0 completes the folder and removes old ones; returns what went wrong, on every rank."""
        problems: list[str] = []
        if group.rank() == 0:
            try:
                folders.seal(self.checkpoints, job.name, manifest)
            except OSError as error:
                problems.append(f"rank 0: {error}")
            else:
                with suppress(OSError):  # what cannot be removed now is tried again next time
                    folders.prune(self.checkpoints, self.keep, self.milestone)
        return cast(list[str], group.from_first(problems))

    def _fail(self, name: str, problems: list[str]) -> None:
        self.failed = True
        if group.rank() == 0:
            shutil.rmtree(folders.partial_folder(self.checkpoints, name), ignore_errors=True)
        say(
            f"warning: no checkpoint could be written ({'; '.join(problems)}): the last good one stays and "
            "the run continues"
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
