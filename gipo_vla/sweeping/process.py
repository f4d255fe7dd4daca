"""One job as a process of its own: started, asked to stop, killed, and what its log says.

A job has a session of its own, so that Ctrl-C reaches the sweep alone, which passes it on once. Should the
sweep die without a word, Linux sends its jobs a SIGTERM: they save and leave, and nobody is an orphan.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from gipo_vla.sweeping.folders import LOG
from gipo_vla.sweeping.jobs import Job

_ERROR_LINE = re.compile(r"error: |[\w.]*(Error|Exception|Interrupt)\b")
_RANK = re.compile(r"^\[rank\d+\]: ?")

Command = Callable[[Job, Path], list[str]]
"""The command line of a job in a run folder."""


def train_command(job: Job, folder: Path, torchrun_ranks: int | None = None) -> list[str]:
    """``python -m gipo_vla.train ...``, or the same under torchrun.

    Args:
        torchrun_ranks: None: a plain process.
    """
    run = ["-m", "gipo_vla.train", *job.arguments, f"run_dir={folder}", "resume=auto"]
    if torchrun_ranks is None:
        return [sys.executable, *run]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={torchrun_ranks}"]
    return [sys.executable, *launcher, *run]


def environment(threads: int, gpus: Sequence[str]) -> dict[str, str]:
    """The environment of a job.

    Args:
        threads: for libraries that would take every core.
        gpus: that it may see; none: as this process.
    """
    own = dict(os.environ)
    own.setdefault("OMP_NUM_THREADS", str(threads))
    # torchrun restarts its ranks with a fresh store; see gipo_vla.distributed.group.
    own.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    if gpus:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return own


# Looked up before any fork: the child must not load libraries.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _die_with(parent: int) -> Callable[[], None]:
    """For the child, between fork and exec."""

    def prepare() -> None:
        if _prctl is None:
            return
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return prepare


class JobProcess:
    """A running job.

    Args:
        slot: place among those that run side by side.
        lock: kept as long as the job runs.
    """

    def __init__(
        self,
        job: Job,
        folder: Path,
        command: list[str],
        environment: dict[str, str],
        slot: int,
        lock: IO[str],
    ) -> None:
        self.job, self.folder, self.slot = job, folder, slot
        self._lock = lock
        self.began = time.monotonic()
        self.stopping = False
        """It was asked to stop."""
        self._log = folder / LOG
        self._log_begins = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = psutil.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                # Safe: this process has one thread of its own when it starts jobs.
                preexec_fn=_die_with(os.getpid()),
            )
        self._launcher = "torch.distributed.run" in command

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def poll(self) -> int | None:
        """Exit status; negative: the signal that ended it; None while it runs."""
        status = self._process.poll()
        if status is not None:
            self._lock.close()
        return status

    def stop(self) -> None:
        """Ask it to save and leave.

        torchrun gives its ranks 30 seconds after a SIGTERM of its own, too little for a large checkpoint; so
        the ranks are asked, and it leaves after them.
        """
        self.stopping = True
        ranks = self._children() if self._launcher else []
        for process in ranks or [self._process]:
            with suppress(psutil.Error):
                process.terminate()

    def kill(self) -> None:
        """End it and everything that it started, at once."""
        self.stopping = True
        for process in [self._process, *self._children(recursive=True)]:
            with suppress(psutil.Error):
                process.kill()

    def _children(self, recursive: bool = False) -> list[psutil.Process]:
        with suppress(psutil.Error):
            return list(self._process.children(recursive))
        return []

    def problem(self, status: int) -> str:
        """Why it failed, in one line."""
        if status < 0:
            name = signal.Signals(-status).name
            return f"killed by {name}" + (" (out of memory?)" if -status == signal.SIGKILL else "")
        text = self._log.read_bytes()[self._log_begins :].decode(errors="replace")
        return telling_line(text) or f"exit status {status}, and nothing in {self._log}"


def telling_line(log: str) -> str:
    """The last line that names an error (torchrun writes a page after it), else the last line of all."""
    lines = [line for text in log.splitlines() if (line := _RANK.sub("", text).strip())]
    errors = [line for line in lines if _ERROR_LINE.match(line) and "ChildFailedError" not in line]
    return (errors or lines or [""])[-1]
