"""The sigma at which the tokens of recent updates count most evenly: GIPO's ``sigma=auto``.

What a batch of n tokens with coefficients u is worth is measured by its effective sample size, as a share
(Kish; see ``objectives.diagnostics``),

    ESS = (sum u)^2 / (n sum u^2),   u = w(rho) rho.

Too wide a kernel lets a few large ratios outweigh the rest, too narrow a one lets only the tokens near rho
= 1 count. In between ESS has a maximum. For log rho ~ N(0, s^2), the gaussian kernel and v = s^2 / sigma^2,

    E[u^p] = (1 + p v)^(-1/2) exp(p^2 s^2 / (2 (1 + p v))),   so that
    ESS = E[u]^2 / E[u^2] = sqrt(1 + 2 v) / (1 + v) exp(-s^2 / ((1 + v) (1 + 2 v))),

which is largest at sigma 0.58, 0.75, 0.95, 1.27 for s -> 0, 0.5, 1, 2: the best width grows far slower than
the spread, and is near 1 wherever data are old but not hopeless. (docs/objectives.md has the derivation.)

Nothing here supposes that log-ratios are normal. For each of a row of candidates the sums of u and u^2 over
the tokens of all ranks are added up over updates, an update weighted by ``DECAY`` to the power of its age,
and the candidate with the largest ESS is taken. u is the coefficient of the objective as it is set, with
its kernel and its ``sigma_neg_ratio``: with 0.5 the best sigma is larger than above, because half of the
tokens use half of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gipo_vla.objectives.base import ObjectiveSettings

CANDIDATES = 41
"""Evenly spaced in the logarithm: 6 % apart from 0.2 to 2."""
DECAY = 0.95
"""Remembers about 20 updates, as the moving statistics of advantages do."""
START = 1.0
"""Sigma before the first update, and where no candidate is better than another."""


class AdaptiveSigma:
    """Follows the log-ratios of past updates; see the module. An ``objectives.base.AdaptiveObjective``.

    Args:
        with_sigma: the objective with a given sigma.
        lowest, highest: bounds of sigma.
    """

    def __init__(
        self, with_sigma: Callable[[float], ObjectiveSettings], lowest: float, highest: float
    ) -> None:
        step = math.log(highest / lowest) / (CANDIDATES - 1)
        self.candidates = [lowest * math.exp(step * index) for index in range(CANDIDATES - 1)] + [highest]
        self.sigma = min(max(START, lowest), highest)
        """The one in force."""
        self._objectives = [with_sigma(sigma) for sigma in self.candidates]
        self._with_sigma = with_sigma
        self._count = 0.0
        self._sums = [0.0] * CANDIDATES
        self._squares = [0.0] * CANDIDATES

    @property
    def settings(self) -> ObjectiveSettings:
        """The objective with the sigma in force."""
        return self._with_sigma(self.sigma)

    def observe(self, packed: Tensor) -> None:
        """Add the tokens of one update and choose anew."""
        log_ratio, _, advantages, _, valid = packed.double().unbind(-1)
        rows = []
        for objective in self._objectives:
            coefficient = torch.where(valid > 0, objective.surrogate(log_ratio, advantages).coefficient, 0.0)
            rows.append(torch.stack([coefficient.sum(), coefficient.square().sum()]))
        sums, squares = torch.stack(rows, dim=-1).tolist()
        self._count = DECAY * self._count + float(valid.sum())
        self._sums = [DECAY * old + new for old, new in zip(self._sums, sums)]
        self._squares = [DECAY * old + new for old, new in zip(self._squares, squares)]
        sizes = self.effective_sample_sizes()
        # Among equals (on-policy all are), the nearest to the start: no bound is taken for want of evidence.
        enough = max(sizes) * (1 - 1e-9)
        good = [sigma for sigma, size in zip(self.candidates, sizes) if size >= enough]
        if max(sizes) > 0:
            self.sigma = min(good, key=lambda sigma: abs(math.log(sigma / START)))

    def effective_sample_sizes(self) -> list[float]:
        """Of the remembered updates for each candidate, in 0..1; 0 where no token counts."""
        return [
            total**2 / (self._count * squares) if squares > 0 and self._count > 0 else 0.0
            for total, squares in zip(self._sums, self._squares)
        ]

    def metrics(self) -> dict[str, float]:
        """The sigma in force."""
        return {"objective/sigma": self.sigma}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, exact through JSON."""
        return {
            "sigma": self.sigma,
            "candidates": self.candidates,
            "count": self._count,
            "sums": self._sums,
            "squares": self._squares,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back ``state_dict``; sums for other bounds than today's are forgotten."""
        self.sigma = min(max(float(state["sigma"]), self.candidates[0]), self.candidates[-1])
        if list(state["candidates"]) == self.candidates:
            self._count = float(state["count"])
            self._sums, self._squares = list(state["sums"]), list(state["squares"])
