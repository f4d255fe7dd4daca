"""One worker process as its pool sees it: started, asked, answered, stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from gipo_envs.errors import RunStoppedError
from gipo_vla.rollout.worker import WorkerSetup

START_TIMEOUT = 120.0
"""Seconds a worker may take to import its simulator, however impatient its pool is."""


class WorkerError(RuntimeError):
    """A worker raised an exception; its traceback is the message."""


class WorkerLostError(WorkerError, RunStoppedError):
    """A worker died or hung where none may be replaced, or every time that it was started."""


class Answer(NamedTuple):
    """What a request led to."""

    alive: bool
    """False: the worker died or hung."""
    value: Any = None


class WorkerProcess:
    """Starts a worker at once; its first ``answer`` says that it is ready.

    Args:
        number: of the worker in its pool, for messages.
        setup: the first message to it.
        timeout: seconds without an answer after which it counts as hung.
        module: what it runs; it imports no torch.
    """

    def __init__(
        self, number: int, setup: Any, timeout: float, module: str = "gipo_vla.rollout.worker"
    ) -> None:
        self.number, self.timeout = number, timeout
        self.deadline: float | None = None
        """When it counts as hung; None while nothing is asked of it."""
        ours, theirs = socket.socketpair()
        # Mesa keeps its shader cache in a thread of the least priority, for which the end of a process that
        # has drawn waits: 0.5 s, on a busy machine longer than the pool has patience.
        environment = {"MESA_SHADER_CACHE_DISABLE": "true"} | dict(os.environ)
        # One simulator a process and one process a core: more threads only take turns.
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno())],
            pass_fds=(theirs.fileno(), *([setup.memory] if isinstance(setup, WorkerSetup) else [])),
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a simulator prints must not end up in the JSON of a command
            env=environment,
            # torchrun and Slurm send SIGTERM to a rank's whole process group: the rank still needs its
            # simulators, whose state it is going to save. They die with it in any case.
            start_new_session=True,
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self._send(setup, max(timeout, START_TIMEOUT))

    @property
    def pid(self) -> int:
        return self._process.pid

    def _send(self, message: Any, timeout: float) -> None:
        self.deadline = time.monotonic() + timeout
        with suppress(BrokenPipeError, ConnectionResetError):  # answer() will find it dead
            self.connection.send(message)

    def request(self, *message: Any) -> None:
        """Ask for something: a name and arguments."""
        self._send(message, self.timeout)

    def answer(self) -> Answer:
        """Wait for the answer to what was asked last.

        Raises:
            WorkerError: the worker raised an exception.
        """
        assert self.deadline is not None, "nothing was asked"
        remaining, self.deadline = max(0.0, self.deadline - time.monotonic()), None
        try:
            if not self.connection.poll(remaining):
                return Answer(False)
            state, value = self.connection.recv()
        except (EOFError, ConnectionResetError, BrokenPipeError):
            return Answer(False)
        if state == "failed":
            raise WorkerError(f"simulator worker {self.number} failed:\n{value}")
        return Answer(True, value)

    def ask_to_stop(self) -> None:
        with suppress(OSError):
            self.connection.send(("close",))

    def stop(self, patience: float) -> str:
        """End it, by force after ``patience`` seconds; says how it had fared until then."""
        self.ask_to_stop()
        try:
            status = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            status = 0
            self._process.kill()
            self._process.wait()
        self.connection.close()
        # It ends with 0 when asked to, so it had been alive.
        return f"died with exit status {status}" if status else "hung"
