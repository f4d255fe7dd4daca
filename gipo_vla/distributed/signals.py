"""Leave at a good moment when asked to.

While a command imports its libraries, Ctrl-C ends the process at once, with one line. During a run, SIGTERM
(a scheduler, torchrun) and the first SIGINT (Ctrl-C) only set a flag; the lifecycle has all ranks agree on it
after every update, saves, and leaves. A second SIGINT leaves at once; the simulators die with their parent. A
rank whose torchrun was killed gets a SIGTERM of its own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Self

_STDERR = 2


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        _write("interrupted")
    os._exit(130)


def leave_at_once_on_interrupt() -> None:
    """Have Ctrl-C end this process, with one line and status 130, until ``interrupts_raise``.

    A KeyboardInterrupt in the middle of an import may be swallowed, or told of in a traceback of a library's.
    """
    signal.signal(signal.SIGINT, _leave_at_once)


def interrupts_raise() -> None:
    """Have Ctrl-C raise a KeyboardInterrupt again, as Python does of itself."""
    if signal.getsignal(signal.SIGINT) is _leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def importing() -> Iterator[None]:
    """A slow import later on in a command, to which the same applies."""
    # Only the main thread may set handlers; a handler of somebody else's stays.
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        leave_at_once_on_interrupt()
    try:
        yield
    finally:
        interrupts_raise()


class StopRequest:
    """A context within which SIGTERM and SIGINT ask for an orderly stop."""

    def __init__(self) -> None:
        self.asked = False
        """This process was asked to stop; others may not know yet."""
        self._interrupts = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            _write("leaving at once; the last checkpoint is what remains")
            os._exit(130)
        if not self.asked and int(os.environ.get("RANK", 0)) == 0:
            name = signal.Signals(number).name
            _write(f"{name}: saving after this update, then leaving (Ctrl-C again leaves at once)")
        self.asked = True


def _write(line: str) -> None:
    """Straight to the terminal: a signal may have interrupted any other way of printing."""
    with suppress(OSError):
        os.write(_STDERR, f"\n{line}\n".encode())


def stop_with_launcher() -> None:
    """Have Linux send SIGTERM to this process when the torchrun that started it is gone."""
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    _launcher.append(os.getppid())
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if launcher_is_gone():  # it died before the call
        os.kill(os.getpid(), signal.SIGTERM)


_launcher: list[int] = []
"""Process of the torchrun that started this one."""


def launcher_is_gone() -> bool:
    """Whether the torchrun that ``stop_with_launcher`` found has died since."""
    return bool(_launcher) and os.getppid() != _launcher[-1]
