"""A run's processes: started with a mark, found again by it wherever they hang, and seen dead or stopped."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from gipo_vla.distributed.group import TORCHRUN_NAMES

MARK = "GIPO_VLA_SOAK"
"""In the environment of everything that a soak starts, and so of everything that this starts."""
ROLES = {
    "gipo_vla.rollout.worker": "worker",
    "torch.distributed.run": "agent",
    "gipo_vla.sweep": "sweep",
    "gipo_vla.train": "trainer",
}
"""Roles by a word of the command line; the first that is found."""


def until(happened: Callable[[], object], patience: float, pause: float = 0.02) -> bool:
    """Wait for something; False if it has not happened within so many seconds."""
    deadline = time.monotonic() + patience
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def gone(process: psutil.Process) -> bool:
    """Whether it is dead, also if nobody has asked for its status yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def stopped(process: psutil.Process) -> bool:
    """Whether it is held by SIGSTOP."""
    return process.status() == psutil.STATUS_STOPPED


def marked(mark: str) -> list[psutil.Process]:
    """Living processes whose mark begins so, by age."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(mark) and not gone(process):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.create_time())


def role(process: psutil.Process) -> str:
    """What a process of a run does; empty if it is none of ``ROLES``."""
    words = process.cmdline()
    found = next((own for word, own in ROLES.items() if word in words), "")
    return "rank" if found == "trainer" and "RANK" in process.environ() else found


def in_role(mark: str, wanted: str) -> list[psutil.Process]:
    """The processes of a launch in a role, without children of theirs that have not become another program
    yet."""
    own, pids = [], set()
    for process in marked(mark):
        try:
            if role(process) == wanted:
                own.append((process, process.ppid()))
                pids.add(process.pid)
        except psutil.Error:
            continue
    return [process for process, parent in own if parent not in pids]


class Launch:
    """A command under way.

    Args:
        mark: of this launch alone.
        log: to which its output is appended.
    """

    def __init__(self, command: Sequence[str], mark: str, log: Path) -> None:
        self.mark, self.log, self.began = mark, log, time.time()
        self.log_begins = log.stat().st_size if log.exists() else 0
        environment = {name: value for name, value in os.environ.items() if name not in TORCHRUN_NAMES}
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", MARK: mark}
        environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # torchrun restarts its ranks
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the soak alone
                umask=0,  # what the run writes is not for everybody to change, whatever it inherits
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def status(self) -> int | None:
        """Exit status; None while it runs."""
        return self._process.poll()

    def text(self) -> str:
        """What it has written so far."""
        with self.log.open("rb") as file:
            file.seek(self.log_begins)
            return file.read().decode(errors="replace")

    def processes(self, wanted: str) -> list[psutil.Process]:
        """Its processes in a role, by age."""
        return in_role(self.mark, wanted)


def kill_all(mark: str) -> list[str]:
    """End what is left with a mark; returns what that was."""
    told = []
    for process in marked(mark):
        try:
            told.append(f"{process.pid} {' '.join(process.cmdline())[:100]}")
            process.kill()
        except psutil.Error:
            continue
    return told
