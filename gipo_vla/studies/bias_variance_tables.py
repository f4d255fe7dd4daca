"""Tables of the bias-variance study, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gipo_vla.reporting.table import Table
from gipo_vla.studies.gradient_moments import ESTIMATORS, SAMPLES, Moments, by_case

CASE = ["target", "behaviour"]
SHOWN = {
    "estimator": "estimator",
    "median_relative_bias": "bias",
    "median_relative_deviation": "std",
    "relative_mse_1": "MSE(1)",
    "relative_mse_30": "MSE(30)",
    "relative_mse_1000": "MSE(1000)",
    "median_signal_to_noise": "s/n",
    "wrong_sign": "wrong sign",
}
"""Columns of the table on the console, and their short names."""


def frame(results: Sequence[Moments]) -> pd.DataFrame:
    """Return a row for each case and estimator, with everything that the tables are made of."""
    every = pd.DataFrame(map(vars, results))
    for name in ("bias", "signal_to_noise", "on_policy"):
        every[name] = [getattr(one, name) for one in results]
    for samples in SAMPLES:
        every[f"mse_{samples}"] = [one.mse(samples) for one in results]
    return every


def _table(name: str, title: str, data: pd.DataFrame) -> Table:
    rows = data.astype(object).where(data.notna(), None).to_numpy().tolist()
    return Table(name, title, tuple(map(str, data.columns)), rows)


def cases_table(results: Sequence[Moments]) -> Table:
    """Return a row for each case and estimator."""
    columns = [*CASE, "estimator", "true_gradient", "mean", "bias", "variance", "signal_to_noise", "cosine"]
    mse = [f"mse_{samples}" for samples in SAMPLES]
    return _table("cases", "Every case and estimator", frame(results)[columns + mse])


def estimators_table(results: Sequence[Moments]) -> Table:
    """Return a row for each estimator over the off-policy cases (on-policy, all but zero are the same)."""
    every = frame([one for one in results if not one.on_policy])
    size = every["true_gradient"].abs()
    names = every["estimator"]

    def over_cases(values: Any) -> Any:
        return values.groupby(names, sort=False)

    relative = {samples: every[f"mse_{samples}"] / size**2 for samples in SAMPLES}
    data = pd.DataFrame(
        {
            "median_relative_bias": over_cases(every["bias"].abs() / size).median(),
            "median_relative_deviation": over_cases(np.sqrt(every["variance"]) / size).median(),
            # Geometric means over the cases.
            **{f"relative_mse_{n}": np.exp(over_cases(np.log(mse)).mean()) for n, mse in relative.items()},
            "median_signal_to_noise": over_cases(every["signal_to_noise"]).median(),
            "median_cosine": over_cases(every["cosine"]).median(),
            "least_cosine": over_cases(every["cosine"]).min(),
            "wrong_sign": over_cases(every["mean"] * every["true_gradient"] < 0).sum(),
        }
    )
    return _table("estimators", "Estimators over the off-policy cases", data.reset_index())


def best_table(results: Sequence[Moments]) -> Table:
    """Return in how many of all cases an estimator has the least MSE(n); ties count for each."""
    every = frame(results).set_index([*CASE, "estimator"])
    mse = every[[f"mse_{samples}" for samples in SAMPLES]]
    least = mse.le(mse.groupby(CASE).transform("min") * (1 + 1e-9))
    data = least.groupby("estimator", sort=False).sum().rename(columns=lambda name: name.replace("mse", "n"))
    title = f"Cases of {len(every) // len(ESTIMATORS)} with the least MSE(n), ties counted for each"
    return _table("least_mse", title, data.reset_index())


def for_console(results: Sequence[Moments]) -> Table:
    """Return the table of estimators with short names and fewer columns."""
    full = estimators_table(results)
    title = "Over the off-policy cases, relative to the true gradient (MSE of the zero estimator: 1)"
    rows = [dict(zip(full.columns, row)) for row in full.rows]
    return Table.of("console", title, [{short: row[name] for name, short in SHOWN.items()} for row in rows])


def better(results: Sequence[Moments], estimator: str, than: str, samples: int) -> int:
    """Return the number of off-policy cases in which ``estimator`` has the lower MSE(n)."""
    return sum(
        own[estimator].mse(samples) < own[than].mse(samples) * (1 - 1e-9)
        for own in by_case(results).values()
        if not own[estimator].on_policy
    )


def wrong_sign(results: Sequence[Moments], estimator: str) -> int:
    """Return the number of cases in which the mean estimate has the opposite sign to the true gradient."""
    return sum(one.mean * one.true_gradient < 0 for one in results if one.estimator == estimator)


def finding(results: Sequence[Moments]) -> list[str]:
    """Return what the numbers say, with their caveat; every figure in it is computed."""
    best = {str(row[0]): dict(zip(SAMPLES, row[1:])) for row in best_table(results).rows}
    cases = len(by_case(results))
    off = sum(not one.on_policy for one in results if one.estimator == "zero")

    def against_both(estimator: str) -> str:
        wins = [better(results, estimator, other, 30) for other in ("ppo epsilon=0.2", "no_clip")]
        return " and ".join(f"{count} of {off}" for count in wins)

    def wrong(*estimators: str) -> str:
        return ", ".join(str(wrong_sign(results, name)) for name in estimators)

    widths = ("sigma=0.2", "sigma=0.5", "sigma=1", "sigma=2")
    narrow = better(results, "gipo sigma=0.2", "zero", 10000)
    return [
        f"One sample: the zero estimator has the least MSE in {best['zero'][1]} of {cases} cases, so a "
        "single-sample MSE rewards shrinking and by itself ranks nothing.",
        f"Many samples: only bias is left. No-Clip is best in {best['no_clip'][100]} of {cases} cases at "
        f"n = 100 and in {best['no_clip'][10000]} at n = 10,000 (ties counted).",
        "Between, n = 30: off-policy cases with an MSE below PPO's (0.2) and below No-Clip's: "
        f"GIPO with sigma 2: {against_both('gipo sigma=2')}; with sigma 1: {against_both('gipo sigma=1')}; "
        f"SAPO: {against_both('sapo')}.",
        "Too narrow: GIPO with sigma 0.2 is better than no gradient in only "
        f"{narrow} of {off} off-policy cases, however many samples are averaged.",
        f"Cases in which the mean has the wrong sign: GIPO with sigma 0.2, 0.5, 1, 2: "
        f"{wrong(*(f'gipo {width}' for width in widths))}; with half of it where A <= 0: "
        f"{wrong(*(f'gipo half {width}' for width in widths))}; PPO (0.2): "
        f"{wrong('ppo epsilon=0.2')}; SAPO: {wrong('sapo')}; No-Clip: {wrong('no_clip')}.",
        "Caveat: one state, four actions, exact advantages, cases chosen by hand. It shows what is traded, "
        "not which objective trains best.",
    ]
