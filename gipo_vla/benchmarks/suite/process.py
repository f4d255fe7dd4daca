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

from gipo_vla.distributed.group import TORCHRUN_NAMES
from gipo_vla.sweeping.process import die_with, telling_line


class Boxed:
    """A stage under way in a process of its own.

    Args:
        seconds: after which it will be killed, for it to plan with.
    """

    def __init__(self, stage: str, folder: Path, seconds: float, parts: Sequence[str]) -> None:
        self.parts = list(parts)
        self._began = time.monotonic()
        self._log = folder / f"{stage}.log"
        words = [stage, str(folder), f"{seconds:.1f}", ",".join(parts)]
        with self._log.open("wb") as log:
            self._process = psutil.Popen(
                [sys.executable, "-m", "gipo_vla.benchmarks.suite", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={name: value for name, value in os.environ.items() if name not in TORCHRUN_NAMES},
                start_new_session=True,  # Ctrl-C is for the suite alone
                preexec_fn=partial(die_with, os.getpid()),
            )

    def wait(self, seconds: float) -> tuple[str, str, float]:
        """Wait for its end, and bring that about after so many seconds; returns outcome, reason and how long
        it had been under way."""
        outcome, reason = "failed", ""
        try:
            status = self._process.wait(max(seconds, 0.0))
        except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
            self.kill()
            outcome, reason = "stopped at its box", f"not done after {time.monotonic() - self._began:.0f} s"
        else:
            reason = f"exit status {status}"
        text = self._log.read_text(errors="replace")
        if line := telling_line(text):
            reason += f"; last: {line[:300]}"
        return outcome, reason, time.monotonic() - self._began

    def kill(self) -> None:
        """End it and everything that it started, at once; does nothing after its end."""
        with suppress(psutil.Error):
            for process in [*self._process.children(recursive=True), self._process]:
                with suppress(psutil.Error):
                    process.kill()
            self._process.wait(10)
