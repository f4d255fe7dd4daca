"""Normalising advantages over the global batch, whatever the number of micro-batches and ranks.

Normalising each micro-batch by itself would make the gradient depend on how a batch is cut. So the
normaliser never sees advantages when it learns, only their *moments* (count, sum, sum of squares), which
add up over micro-batches and ranks:

    moments = advantage_moments(advantages, mask)         # each micro-batch; add up; all-reduce (sum)

    running   normalizer.normalize(advantages) ...; after the update: normalizer.observe(moments)
              while not normalizer.ready: as exact, the moments from an extra forward       # once a run
    exact     normalizer.normalize(advantages, moments of a full pass) ...; normalizer.observe(moments)
    none      both do nothing

``running`` normalises a batch by the batches before it: nothing waits for statistics, and one forward
suffices.

Advantages of GAE are shifted to a mean of 0 and scaled to a standard deviation of 1. Those of groups have a
zero that means something (no better and no worse than the siblings; a group without contrast says nothing),
so they are scaled to a root mean square of 1 and not shifted: a shift would give groups that all failed an
advantage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from gipo_envs.errors import UserError

NormalizationMode = Literal["running", "exact", "none"]
NORMALIZED_LIMIT = 10.0


def check_normalize(mode: str) -> None:
    """Raise UserError unless ``mode`` is one of ``NormalizationMode``."""
    if mode not in ("running", "exact", "none"):
        raise UserError(f"credit.normalize is {mode}: it must be running, exact or none")


def advantage_moments(advantages: Tensor, mask: Tensor) -> Tensor:
    """float64 (3,): count, sum and sum of squares of the valid ones of ``advantages`` (any shape).

    float64, because the variance is a difference of two of them, and so that the order of the additions
    cannot be seen in float32 results.
    """
    valid = torch.where(mask, advantages.detach().double(), 0.0)
    return torch.stack([mask.sum().double(), valid.sum(), valid.square().sum()])


class AdvantageNormalizer:
    """Subtracts a mean (or not) and divides by a deviation; see the module for when to call what.

    In running mode the statistics are those of all batches so far, a batch weighted by its count and by
    ``decay`` to the power of its age. Being ratios of decayed sums they have no start-up bias.

    Args:
        mode: see the module.
        decay: 0.95 remembers about 20 updates.
        limit: in running mode, normalised advantages are clamped to plus or minus this. With a sparse
            reward all batches before the first success have almost no variance; without a limit that
            first success would be divided by it.
        shift: subtract the mean. Without it the mean counts as 0, and the deviation is the root mean square.
    """

    def __init__(
        self,
        mode: NormalizationMode,
        decay: float = 0.95,
        limit: float = NORMALIZED_LIMIT,
        shift: bool = True,
    ) -> None:
        check_normalize(mode)
        self.mode = mode
        self.shift = shift
        self.decay = decay
        self.limit = limit
        self._count = 0.0
        self._sum = 0.0
        self._sum_of_squares = 0.0

    @property
    def ready(self) -> bool:
        """``normalize`` may be called."""
        return self.mode == "none" or self._count > 0

    @property
    def mean(self) -> float:
        """Mean in force; 0 where advantages are not shifted."""
        return self._sum / self._count if self.shift else 0.0

    @property
    def std(self) -> float:
        """Population standard deviation in force, about ``mean``."""
        # Rounding can leave a variance of equal numbers just below 0.
        return math.sqrt(max(self._sum_of_squares / self._count - self.mean**2, 0.0))

    def observe(self, moments: Tensor) -> None:
        """Take in the moments (3,) of one global batch, already summed over micro-batches and ranks."""
        count, total, squares = moments.tolist()
        if self.mode == "none" or count == 0:
            return
        keep = self.decay if self.mode == "running" else 0.0
        self._count = keep * self._count + count
        self._sum = keep * self._sum + total
        self._sum_of_squares = keep * self._sum_of_squares + squares

    def normalize(self, advantages: Tensor, moments: Tensor | None = None) -> Tensor:
        """Normalised advantages of the same shape; masked entries are to be ignored afterwards.

        Args:
            moments: (3,) of the batch that the advantages are part of, to normalise it by itself before they
                are observed (which makes the host wait for them). None: by the statistics in force.
        """
        if self.mode == "none":
            return advantages
        mean: float | Tensor
        std: float | Tensor
        if moments is not None:
            count, total, squares = moments.unbind()
            mean = total / count if self.shift else torch.zeros_like(total)
            std = (squares / count - mean**2).clamp_min(0.0).sqrt()
        elif self.ready:
            mean, std = self.mean, self.std
        else:
            raise RuntimeError("observe the moments of a first batch before normalizing")
        normalized = (advantages - mean) / (std + 1e-8)
        return normalized.clamp(-self.limit, self.limit) if self.mode == "running" else normalized

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, exact through JSON."""
        return {"count": self._count, "sum": self._sum, "sum_of_squares": self._sum_of_squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self._count = float(state["count"])
        self._sum = float(state["sum"])
        self._sum_of_squares = float(state["sum_of_squares"])
