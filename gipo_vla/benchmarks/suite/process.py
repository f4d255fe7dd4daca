"""The process of a stage, killed with everything that it started when its time is over."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from gipo_vla.distributed.children import die_with, telling_line
from gipo_vla.distributed.group import TORCHRUN_NAMES

COMMAND = [sys.executable, "-m", "gipo_vla.benchmarks.suite"]
MOST_OF_A_LINE = 300


class Boxed:
    """A stage under way in a process of its own.

    Args:
        seconds: after which ``wait`` kills it; it is told, to plan with.
    """

    def __init__(self, stage: str, folder: Path, seconds: float, parts: Sequence[str]) -> None:
        self.parts = list(parts)
        self._began = time.monotonic()
        self._ends = self._began + seconds
        self._log = folder / f"{stage}.log"
        words = [stage, str(folder), f"{self._ends:.1f}", ",".join(parts)]
        with self._log.open("wb") as log:
            self._process = psutil.Popen(
                [*COMMAND, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={name: value for name, value in os.environ.items() if name not in TORCHRUN_NAMES},
                start_new_session=True,  # Ctrl-C is for the suite alone
                preexec_fn=partial(die_with, os.getpid()),
            )

    def wait(self) -> tuple[str, str, float]:
        """Wait for its end, and bring that about when its time is over; returns how it ended (failed, if it
        has not measured everything, or stopped at its box), why, and for how long it was under way."""
        try:
            status = self._process.wait(max(self._ends - time.monotonic(), 0.0))
            outcome, reason = "failed", f"exit status {status}"
        except psutil.TimeoutExpired:
            self.kill()
            outcome, reason = "stopped at its box", f"not done after {time.monotonic() - self._began:.0f} s"
        if line := telling_line(self._log.read_text(errors="replace")):
            reason += f"; it said last: {line[:MOST_OF_A_LINE]}"
        return outcome, reason, time.monotonic() - self._began

    def kill(self) -> None:
        """End it and everything that it started, at once; does nothing after its end."""
        with suppress(psutil.Error):
            for process in [*self._process.children(recursive=True), self._process]:
                with suppress(psutil.Error):
                    process.kill()
            self._process.wait(10)
