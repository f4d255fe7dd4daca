"""How stale was the data of an update, and what did the objective make of it?

Write rho for the ratio of a token, u for its coefficient (w rho for GIPO, 0 or rho for PPO; see
``objectives.base``) and A for its advantage. Metrics are over the valid tokens of one update, all ranks
and micro-batches together:

    staleness/log_ratio_p01, _p05, _p50, _p95, _p99   quantiles of log rho
    staleness/p95_abs_log_ratio       95 % of tokens have |log rho| at most this; under 0.5 stable, over 2
                                      unstable
    staleness/approximate_kl          mean of k3, an estimate of KL(behaviour || learner) a token, in nats
    staleness/weight_mean             mean of u; 1 on fresh data, under 1 where the objective damps
    staleness/effective_sample_size   (sum u)^2 / (n sum u^2), in 0..1; 1 where all tokens count alike, 0
                                      where none counts
    staleness/zero_fraction           share of tokens with u exactly 0: clipped, or underflowed
    staleness/damped_fraction         share of tokens with u < 1e-3, the zeros included
    staleness/gradient_share_old      sum of |u A| over the old tokens / over all; 0 where nothing pulls
    staleness/lag_mean, lag_p95, lag_max   lag of a token, in the unit it was given in
    staleness/lag_p10, _p20, ..., _p90     its deciles: a histogram of equal shares
    staleness/fraction_new, _old      share of tokens in the two subsets

p95_abs_log_ratio, approximate_kl, weight_mean, effective_sample_size, zero_fraction and damped_fraction
also exist with ``_new`` and ``_old`` at the end, for two subsets by lag:

    new    lag <= the smallest lag that at least a tenth of the tokens do not exceed
    old    lag >= the largest lag that at least half of the tokens reach

zero_fraction, damped_fraction, p95_abs_log_ratio and lag_mean also exist with ``_age1`` (the youngest fifth
by lag) to ``_age5`` (the oldest); a fifth that ties leave empty has none.

Tied lags are never torn apart, so a subset may hold more than its tenth or half (``fraction_new`` and
``fraction_old`` say how much) and is never empty. When all lags are equal, both subsets are the whole
update. A quantile q is always the smallest value that at least q of the tokens do not exceed.

Not here, because they are not functions of these vectors: entropy, explained variance, gradient norm.

Source of the effective sample size: Kish, Survey Sampling (1965); see Owen, Monte Carlo theory, methods
and examples, section 9.3.

Shape suffixes: N transitions, K steps of a chunk, D action dimensions, T tokens of the update.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gipo_vla.objectives.base import ObjectiveOutput
from gipo_vla.objectives.regularizers import K3_LINEAR_FROM

DAMPED_BELOW = 1e-3
NEW_QUANTILE = 0.1
OLD_SHARE = 0.5
LOG_RATIO_QUANTILES = (0.01, 0.05, 0.50, 0.95, 0.99)
LAG_DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
AGES = 5
AGE_METRICS = ("zero_fraction", "damped_fraction", "p95_abs_log_ratio")

Vector = NDArray[np.float64]


class StalenessDiagnostics:
    """Collects the tokens of one update and makes metrics of them; see the module for their names.

    The metrics are functions of the set of valid tokens, so they cannot depend on how the update was cut
    into micro-batches or spread over ranks. With one rank::

        diagnostics.add(output, advantages, lags, mask)   # a micro-batch
        metrics = diagnostics.compute()                   # the update; then diagnostics.reset()

    With several, gather ``packed()`` of all ranks along its first dimension (equal shapes wherever ranks
    hold equally many token slots, since padding is kept) and call ``staleness_metrics`` on the result.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def reset(self) -> None:
        """Forget everything added."""
        self._parts.clear()

    def add(self, output: ObjectiveOutput, advantages: Tensor, lags: Tensor, mask: Tensor) -> None:
        """Add a micro-batch. Copies five floats a token; computes nothing and waits for no device.

        Args:
            output: of ``objective_loss``.
            advantages: (N,) or broadcastable to (N, K, D), as given to the objective.
            lags: (N,) of each transition, in updates or iterations.
            mask: bool (N, K, D).
        """
        advantages = advantages[:, None, None] if advantages.dim() == 1 else advantages
        columns = (output.log_ratio, output.coefficient, advantages, lags[:, None, None], mask)
        self._parts.append(
            torch.stack([c.detach().float().expand(mask.shape).reshape(-1) for c in columns], dim=-1)
        )

    def packed(self) -> Tensor:
        """float32 (T, 5) of everything added: log-ratio, coefficient, advantage, lag, valid (0 or 1)."""
        return torch.cat(self._parts) if self._parts else torch.zeros(0, 5)

    def compute(self) -> dict[str, float]:
        """Metrics of everything added on this rank; empty where no token was valid."""
        return staleness_metrics(self.packed())


def staleness_metrics(packed: Tensor) -> dict[str, float]:
    """Metrics of packed tokens (T, 5); see the module for their names. Empty where no token is valid."""
    # float64 throughout: squares of an unclipped ratio overflow float32. numpy, because a few dozen
    # operations on some thousand numbers cost less there than their launches would on a device.
    columns = packed.detach().cpu().numpy().astype(np.float64).T
    log_ratio, coefficient, advantage, lag = columns[:4, columns[4] > 0]
    if lag.size == 0:
        return {}
    new_until, lag_p95, lag_max = quantiles(lag, (NEW_QUANTILE, 0.95, 1.0))
    old_from = -quantiles(-lag, (OLD_SHARE,))[0]
    new, old = lag <= new_until, lag >= old_from
    deciles = quantiles(lag, LAG_DECILES)
    pull = np.abs(coefficient * advantage)
    total_pull = float(pull.sum())

    metrics = {
        f"log_ratio_p{round(100 * q):02d}": value
        for q, value in zip(LOG_RATIO_QUANTILES, quantiles(log_ratio, LOG_RATIO_QUANTILES))
    }
    metrics |= _subset_metrics(log_ratio, coefficient, "")
    metrics |= _subset_metrics(log_ratio[new], coefficient[new], "_new")
    metrics |= _subset_metrics(log_ratio[old], coefficient[old], "_old")
    metrics |= {
        "gradient_share_old": float(pull[old].sum()) / total_pull if total_pull > 0 else 0.0,
        "lag_mean": float(lag.mean()),
        "lag_p95": lag_p95,
        "lag_max": lag_max,
        "fraction_new": float(new.mean()),
        "fraction_old": float(old.mean()),
    }
    metrics |= {f"lag_p{round(100 * q)}": value for q, value in zip(LAG_DECILES, deciles)}
    metrics |= _metrics_by_age(log_ratio, coefficient, lag, (-math.inf, *deciles[1::2], math.inf))
    return {f"staleness/{name}": value for name, value in metrics.items()}


def _metrics_by_age(
    log_ratio: Vector, coefficient: Vector, lag: Vector, edges: tuple[float, ...]
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for age, (above, until) in enumerate(pairwise(edges), start=1):
        own = (above < lag) & (lag <= until)
        if own.any():
            subset = _subset_metrics(log_ratio[own], coefficient[own], f"_age{age}")
            metrics |= {f"{name}_age{age}": subset[f"{name}_age{age}"] for name in AGE_METRICS}
            metrics[f"lag_mean_age{age}"] = float(lag[own].mean())
    return metrics


def quantiles(values: Vector, levels: tuple[float, ...]) -> list[float]:
    """For each level q the smallest of ``values`` that at least a share q of them do not exceed."""
    # 0.55 * 100 rounds to above 55: without the margin, the rank would be one too high.
    ranks = [max(math.ceil(level * values.size - 1e-9) - 1, 0) for level in levels]
    ordered = np.partition(values, ranks)
    return [float(ordered[rank]) for rank in ranks]


def effective_sample_size(weights: Vector) -> float:
    """(sum u)^2 / (n sum u^2) of weights >= 0, in 0..1; 0 where all are 0."""
    # Scaled by the largest, so that tiny weights do not vanish when squared.
    largest = float(weights.max())
    if largest == 0:
        return 0.0
    scaled = weights / largest
    return float(scaled.sum() ** 2 / (scaled.size * np.square(scaled).sum()))


def _subset_metrics(log_ratio: Vector, coefficient: Vector, suffix: str) -> dict[str, float]:
    capped = np.minimum(log_ratio, K3_LINEAR_FROM)  # as in regularizers.k3
    tangent = math.exp(K3_LINEAR_FROM) * (log_ratio - capped)
    return {
        f"p95_abs_log_ratio{suffix}": quantiles(np.abs(log_ratio), (0.95,))[0],
        f"approximate_kl{suffix}": float((np.expm1(capped) + tangent - log_ratio).mean()),
        f"weight_mean{suffix}": float(coefficient.mean()),
        f"effective_sample_size{suffix}": effective_sample_size(coefficient),
        f"zero_fraction{suffix}": float((coefficient == 0).mean()),
        f"damped_fraction{suffix}": float((coefficient < DAMPED_BELOW).mean()),
    }
