"""Processes that a command starts: they end with it, and their logs say why they ended."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys

_ERROR_LINE = re.compile(r"error: |[\w.]*(Error|Exception|Interrupt)\b")
_RANK = re.compile(r"^\[rank\d+\]: ?")

# Looked up before any fork: the child must not load libraries.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have Linux send SIGTERM when the parent dies. For the child, between fork and exec."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)


def telling_line(log: str) -> str:
    """The last line that names an error (torchrun writes a page after it), else the last line of all."""
    lines = [line for text in log.splitlines() if (line := _RANK.sub("", text).strip())]
    errors = [line for line in lines if _ERROR_LINE.match(line) and "ChildFailedError" not in line]
    return (errors or lines or [""])[-1]
