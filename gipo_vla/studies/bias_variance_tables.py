"""Tables of the bias-variance study, and what they say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gipo_vla.reporting.table import Cell, Table
from gipo_vla.studies.gradient_moments import ESTIMATORS, SAMPLES, Moments, by_case, typical_mse


def cases_table(results: Sequence[Moments]) -> Table:
    """A row for each case and estimator."""
    columns = (
        "target",
        "behaviour",
        "estimator",
        "true_gradient",
        "mean",
        "bias",
        "variance",
        "signal_to_noise",
        "cosine",
        *[f"mse_{samples}" for samples in SAMPLES],
    )
    rows = [
        [
            one.target,
            one.behaviour,
            one.estimator,
            one.true_gradient,
            one.mean,
            one.bias,
            one.variance,
            one.signal_to_noise,
            one.cosine,
            *[one.mse(samples) for samples in SAMPLES],
        ]
        for one in results
    ]
    return Table("cases", "Every case and estimator", columns, rows)


def estimators_table(results: Sequence[Moments]) -> Table:
    """Each estimator over the off-policy cases (on-policy, all but zero are the same)."""
    rows: list[list[Cell]] = []
    for name in ESTIMATORS:
        own = [one for one in results if one.estimator == name and not one.on_policy]
        rows.append(
            [
                name,
                float(np.median([abs(one.bias / one.true_gradient) for one in own])),
                float(np.median([one.variance**0.5 / abs(one.true_gradient) for one in own])),
                *[typical_mse(own, samples) for samples in SAMPLES],
                _median([one.signal_to_noise for one in own]),
                _median([one.cosine for one in own]),
                _least([one.cosine for one in own]),
                wrong_sign(own, name),
            ]
        )
    columns = (
        "estimator",
        "median_relative_bias",
        "median_relative_deviation",
        *[f"relative_mse_{samples}" for samples in SAMPLES],
        "median_signal_to_noise",
        "median_cosine",
        "least_cosine",
        "wrong_sign",
    )
    return Table("estimators", "Estimators over the off-policy cases", columns, rows)


def best_table(results: Sequence[Moments]) -> Table:
    """In how many of all cases an estimator has the least MSE(n); ties count for each."""
    cases = by_case(results)
    rows: list[list[str | int]] = []
    for name in ESTIMATORS:
        counts = []
        for samples in SAMPLES:
            least = [min(one.mse(samples) for one in own.values()) for own in cases.values()]
            counts.append(
                sum(own[name].mse(samples) <= low * (1 + 1e-9) for own, low in zip(cases.values(), least))
            )
        rows.append([name, *counts])
    columns = ("estimator", *[f"n_{samples}" for samples in SAMPLES])
    return Table(
        "least_mse", f"Cases of {len(cases)} with the least MSE(n), ties counted for each", columns, rows
    )


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _median(values: Sequence[float | None]) -> float | None:
    return float(np.median(_known(values))) if _known(values) else None


def _least(values: Sequence[float | None]) -> float | None:
    return min(_known(values), default=None)


def for_console(results: Sequence[Moments]) -> Table:
    """The table of estimators with short names and fewer columns."""
    full = estimators_table(results)
    chosen = {
        "estimator": "estimator",
        "median_relative_bias": "bias",
        "median_relative_deviation": "std",
        "relative_mse_1": "MSE(1)",
        "relative_mse_30": "MSE(30)",
        "relative_mse_1000": "MSE(1000)",
        "median_signal_to_noise": "s/n",
        "wrong_sign": "wrong sign",
    }
    places = [full.columns.index(column) for column in chosen]
    return Table(
        "console",
        "Over the off-policy cases, relative to the true gradient (MSE of the zero estimator: 1)",
        tuple(chosen.values()),
        [[row[place] for place in places] for row in full.rows],
    )


def better(results: Sequence[Moments], estimator: str, than: str, samples: int) -> int:
    """Off-policy cases in which ``estimator`` has the lower MSE(n)."""
    return sum(
        own[estimator].mse(samples) < own[than].mse(samples) * (1 - 1e-9)
        for own in by_case(results).values()
        if not own[estimator].on_policy
    )


def wrong_sign(results: Sequence[Moments], estimator: str) -> int:
    """Cases in which the mean estimate has the sign opposite to the true gradient's."""
    return sum(one.mean * one.true_gradient < 0 for one in results if one.estimator == estimator)


def finding(results: Sequence[Moments]) -> list[str]:
    """What the numbers say, with their caveat; every figure in it is computed."""
    best = {str(row[0]): dict(zip(SAMPLES, row[1:])) for row in best_table(results).rows}
    cases = len(by_case(results))
    off = sum(not one.on_policy for one in results if one.estimator == "zero")

    def beats(estimator: str, than: str, samples: int) -> str:
        return f"{better(results, estimator, than, samples)} of {off}"

    def against_both(estimator: str) -> str:
        return f"{beats(estimator, 'ppo epsilon=0.2', 30)} and {beats(estimator, 'no_clip', 30)}"

    def wrong(*estimators: str) -> str:
        return ", ".join(str(wrong_sign(results, name)) for name in estimators)

    narrow_to_wide = ("sigma=0.2", "sigma=0.5", "sigma=1", "sigma=2")
    return [
        f"One sample: the zero estimator has the least MSE in {best['zero'][1]} of {cases} cases, so a "
        "single-sample MSE rewards shrinking and by itself ranks nothing.",
        f"Many samples: only bias is left. No-Clip is best in {best['no_clip'][100]} of {cases} cases at "
        f"n = 100 and in {best['no_clip'][10000]} at n = 10,000 (ties counted).",
        "Between, n = 30: off-policy cases with an MSE below PPO's (0.2) and below No-Clip's: "
        f"GIPO with sigma 2: {against_both('gipo sigma=2')}; with sigma 1: {against_both('gipo sigma=1')}; "
        f"SAPO: {against_both('sapo')}.",
        "Too narrow: GIPO with sigma 0.2 is better than no gradient in only "
        f"{beats('gipo sigma=0.2', 'zero', 10000)} off-policy cases, however many samples are averaged.",
        f"Cases in which the mean has the wrong sign: GIPO with sigma 0.2, 0.5, 1, 2: "
        f"{wrong(*(f'gipo {sigma}' for sigma in narrow_to_wide))}; with half of it where A <= 0: "
        f"{wrong(*(f'gipo half {sigma}' for sigma in narrow_to_wide))}; PPO (0.2): "
        f"{wrong('ppo epsilon=0.2')}; SAPO: {wrong('sapo')}; No-Clip: {wrong('no_clip')}.",
        "Caveat: one state, four actions, exact advantages, cases chosen by hand. It shows what is traded, "
        "not which objective trains best.",
    ]
