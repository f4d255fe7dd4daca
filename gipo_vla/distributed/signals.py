"""Leave at a good moment when asked to.

SIGTERM (a scheduler, torchrun) and the first SIGINT (Ctrl-C) only set a flag; all ranks agree on it after
every update, save, and leave. A second SIGINT leaves at once; the simulators die with their parent.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Self

import torch

from gipo_vla.distributed import group


class StopRequest:
    """A context within which SIGTERM and SIGINT ask for an orderly stop."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._asked = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            os.write(sys.stderr.fileno(), b"\nleaving at once; the last checkpoint is what remains\n")
            os._exit(130)
        if not self._asked:
            name = signal.Signals(number).name
            message = f"\n{name}: saving after this update, then leaving (Ctrl-C again leaves at once)\n"
            os.write(sys.stderr.fileno(), message.encode())
        self._asked = True

    def agreed(self) -> bool:
        """Whether any rank was asked to stop (a collective call)."""
        return group.largest(int(self._asked), self._device) > 0
