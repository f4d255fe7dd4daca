"""Two policies on the same initial states: what one solves and the other does not.

Sources: McNemar 1947, "Note on the sampling error of the difference between correlated proportions" (here in
its exact, binomial form); Newcombe 1998, "Improved confidence intervals for the difference between binomial
proportions based on paired data", method 10.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import scipy  # its parts load when first used
from rich.table import Table

from gipo_vla.evaluation.episodes import EpisodeResult
from gipo_vla.telemetry import console


def compare(first: Sequence[EpisodeResult], second: Sequence[EpisodeResult]) -> dict[str, Any]:
    """The difference in ``success_once`` of two policies' episodes (the same plans in the same order), first
    minus second, with its 95 % interval and the p-value of the exact McNemar test."""
    assert [result.plan for result in first] == [result.plan for result in second]
    pairs = [(one.success_once, other.success_once) for one, other in zip(first, second)]
    both, only_first, only_second = (
        pairs.count(kind) for kind in ((True, True), (True, False), (False, True))
    )
    discordant = only_first + only_second
    low, high = difference_interval(both, only_first, only_second, len(pairs) - both - discordant)
    return {
        "episodes": len(pairs),
        "difference": (only_first - only_second) / len(pairs),
        "difference_interval_95": [round(low, 4), round(high, 4)],
        "only_first": only_first,
        "only_second": only_second,
        "p_value": float(scipy.stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0,
    }


def difference_interval(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """Newcombe's 95 % interval of the difference of two paired rates, from the four counts of pairs."""
    count = both + only_first + only_second + neither
    rates, bounds = [], []
    for successes in (both + only_first, both + only_second):
        interval = scipy.stats.binomtest(successes, count).proportion_ci(
            confidence_level=0.95, method="wilson"
        )
        rates.append(successes / count)
        bounds.append((float(interval.low), float(interval.high)))
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    agreement = float(both * neither - only_first * only_second)
    if agreement > 0:  # the continuity correction of method 10
        agreement = max(agreement - count / 2, 0.0)
    correlation = agreement / math.sqrt(margins) if margins else 0.0

    def distance(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0.0))

    difference = rates[0] - rates[1]
    low = difference - distance(rates[0] - bounds[0][0], bounds[1][1] - rates[1])
    high = difference + distance(bounds[0][1] - rates[0], rates[1] - bounds[1][0])
    return low, high


def table(comparisons: Mapping[str, Mapping[str, Any]]) -> Table:
    """Comparisons by mode, for people."""
    rows = []
    for mode, row in comparisons.items():
        low, high = row["difference_interval_95"]
        rows.append(
            (
                mode,
                str(row["episodes"]),
                f"{row['difference']:+.2f}",
                f"{low:+.2f} .. {high:+.2f}",
                str(row["only_first"]),
                str(row["only_second"]),
                f"{row['p_value']:.4f}",
            )
        )
    columns = ("mode", "episodes", "difference", "95 %", "only checkpoint", "only versus", "p (McNemar)")
    return console.table("checkpoint minus versus, on the same initial states", columns, rows, left=("mode",))
