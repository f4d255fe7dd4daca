"""The worth of the value network's 1, where it follows the size of the returns (``learner.value_scale``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from gipo_vla.credit.normalization import AdvantageNormalizer
from gipo_vla.learner.update import SUMS

SMALLEST = 1e-3
"""Where all returns are 0 nothing is blown up beyond this."""


class ValueScale:
    """The root mean square of recent value targets, in scaled return; with ``none`` and at the start 1.

    Unlike PopArt (arXiv 1602.07714) it leaves the output layer alone where it changes: as returns grow, so do
    the predictions. It changes between updates only.
    """

    def __init__(self, mode: Literal["none", "running"]) -> None:
        self.mode = mode
        self._targets = AdvantageNormalizer("running", shift=False)

    @property
    def now(self) -> float:
        """What the network's output is multiplied by."""
        if self.mode == "none" or not self._targets.ready:
            return 1.0
        return max(self._targets.std, SMALLEST)

    def observe(self, sums: Tensor, transitions: Tensor) -> None:
        """Take an update's targets into account.

        Args:
            sums: float64 (len(SUMS),) over micro-batches and ranks.
            transitions: how many they are of.
        """
        squares = sums[SUMS.index("target_square")]
        self._targets.observe(torch.stack([transitions, sums[SUMS.index("target")], squares]))

    def state_dict(self) -> dict[str, Any]:
        return self._targets.state_dict()

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        self._targets.load_state_dict(values)
