"""The tables of a report, from a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, product

from gipo_vla.objectives.diagnostics import AGES
from gipo_vla.reporting import summary
from gipo_vla.reporting.comparison import (
    Comparison,
    difference_of_differences,
    paired_difference,
    score_estimate,
    score_strata,
)
from gipo_vla.reporting.grouping import CAPACITY, SIGMA, Configuration, label, show
from gipo_vla.reporting.runs import Run
from gipo_vla.reporting.statistics import Difference, Estimate, estimate
from gipo_vla.reporting.summary import HELD_OUT_SCORES, mean_over, settled_mean, task_scores
from gipo_vla.reporting.table import Cell, Table

MOST_COMPARED = 16
"""Configurations up to which every pair is compared."""

SAMPLED: Mapping[str, summary.Score] = {
    "sampled": "sampled.success_once",
    "sampled, at end": "sampled.success_at_end",
    "sampled return": "sampled.mean_return",
}
"""What stands beside the score, because greedy actions can hide that a policy is nearly uniform."""

Record = dict[str, Cell]


def _estimate(result: Estimate | None, name: str, interval: str = "") -> Record:
    """An estimate's columns: its name, and the ends of its interval, whose names may begin with something."""
    values = (result.value, result.low, result.high) if result else (None, None, None)
    return dict(zip((name, f"{interval}low_95", f"{interval}high_95"), values))


def _staleness(one: Configuration, names: Mapping[str, str]) -> Record:
    """Settled means of a configuration: column -> end of the metric's name."""
    return {column: mean_over(one.runs, f"staleness/{name}") for column, name in names.items()}


def configurations(comparison: Comparison) -> Table:
    """The headline: a row for each configuration."""
    source = comparison.source
    records = [
        {
            "configuration": one.label,
            "runs": len(one.runs),
            **_estimate(comparison.estimate(one), comparison.score_column),
            "success_at_end_iqm": _value(score_estimate(one, source, "success_at_end")),
            **_estimate(
                score_estimate(one, source, "over_training"), "success_over_training_iqm", "over_training_"
            ),
            "regime": summary.regime_of(one.runs),
            **_staleness(
                one,
                {
                    "mean_lag_iterations": "lag_iterations_mean",
                    "p95_abs_log_ratio": "p95_abs_log_ratio",
                    "effective_sample_size_old": "effective_sample_size_old",
                },
            ),
            **{
                f"{score.replace('.', '_')}_iqm": _value(score_estimate(one, source, score))
                for score in SAMPLED.values()
                if source == "evaluation"
            },
        }
        for one in comparison.configurations
    ]
    return Table.of("configurations", f"{comparison.noun.capitalize()} and staleness", records)


def readable(comparison: Comparison) -> Table:
    """The same with intervals in words, for people, and the sampled mode beside the greedy one."""
    source = comparison.source
    records = [
        {
            "configuration": one.label,
            comparison.noun: _in_words(comparison.estimate(one)),
            **{
                column: value
                for column, score in SAMPLED.items()
                if score != comparison.score
                and (value := _value(score_estimate(one, source, score))) is not None
            },
            "over training": _value(score_estimate(one, source, "over_training")),
            "regime": summary.regime_of(one.runs),
            **_staleness(one, {"lag": "lag_iterations_mean", "P95": "p95_abs_log_ratio"}),
        }
        for one in comparison.configurations
    ]
    title = f"{comparison.noun.capitalize()} (IQM), mean lag in iterations, P95 |log rho|"
    return Table.of("readable", title, records)


def held_out(comparison: Comparison) -> Table | None:
    """Every score of held-out episodes, of both modes; None where there is no evaluation."""
    if comparison.source != "evaluation":
        return None
    records = [
        {"configuration": one.label, "score": score, "scores": result.count, **_estimate(result, "iqm")}
        for one, score in product(comparison.configurations, HELD_OUT_SCORES)
        if (result := score_estimate(one, comparison.source, score)) is not None
    ]
    return Table.of("held_out", "Held-out initial states, greedy and sampled", records)


def _value(result: Estimate | None) -> float | None:
    return result.value if result else None


def _in_words(result: Estimate | None) -> str | None:
    if result is None:
        return None
    digits = 0 if abs(result.value) >= 100 else 2
    if result.low is None:
        return f"{result.value:,.{digits}f}"
    return f"{result.value:,.{digits}f} [{result.low:,.{digits}f}, {result.high:,.{digits}f}]"


def runs(comparison: Comparison) -> Table:
    """A row for each run that counts, with its settings that vary and what is known of its second half."""
    varied = (*comparison.factors, *comparison.confounded)
    records: list[Record] = []
    for one, run in ((each, run) for each in comparison.configurations for run in each.runs):
        scores = task_scores(run, comparison.source, comparison.score)
        records.append(
            {
                "run": run.name,
                "configuration": one.label,
                "task": ", ".join(run.tasks),
                "seed": _setting(run, "seed"),
                **{key: _setting(run, key) for key in varied},
                "iterations": run.iterations,
                "env_steps": run.rows[-1]["env_steps"],
                "updates": run.rows[-1].get("updates"),
                "state": "complete" if run.complete else "under way",
                comparison.score: sum(scores.values()) / len(scores) if scores else None,
                "success_over_training": summary.success_over_training(run),
                "regime": summary.regime_of([run]),
                **{metric: settled_mean(run, metric) for metric in summary.SETTLED},
            }
        )
    return Table.of("runs", "Runs", records)


def _setting(run: Run, key: str) -> Cell:
    """A setting for programs: nothing where the run does not have it, ``none`` where it is null."""
    if key not in run.config:
        return None
    value = run.config[key]
    return show(value) if value is None or isinstance(value, bool) else value


def success_per_task(comparison: Comparison) -> Table:
    """Interquartile mean over seeds for each task and configuration."""
    records: list[Record] = []
    for task, one in product(comparison.tasks, comparison.configurations):
        scores = score_strata(one, comparison.source, comparison.score).get(task)
        if scores is not None:
            row: Record = {"task": task, "configuration": one.label, "runs": len(scores)}
            records.append(row | _estimate(estimate([scores]), comparison.score_column))
    return Table.of("success_per_task", f"{comparison.noun.capitalize()} per task", records)


def evaluation(run: Run) -> Table | None:
    """evaluation.json of one run: each task in each mode, with the intervals that it holds."""
    if run.evaluation is None:
        return None
    records: list[Record] = []
    headline = run.evaluation.get("mode", "")
    for mode in dict.fromkeys((headline, "greedy", "sampled")):
        own = run.evaluation if mode == headline else run.evaluation.get(mode)
        if not own:
            continue
        tasks = own.get("tasks", {})
        for name, values in [*(tasks.items() if len(tasks) > 1 else []), ("all", own)]:
            low, high = values.get("success_once_interval_95", (None, None))
            records.append(
                {
                    "task": next(iter(tasks)) if name == "all" and len(tasks) == 1 else name,
                    "mode": mode,
                    "episodes": values["episodes"],
                    "success_once": values["success_once"],
                    "low_95": low,
                    "high_95": high,
                    "success_at_end": values.get("success_at_end"),
                    "return": values.get("mean_return"),
                }
            )
    return Table.of("evaluation", "Held-out initial states", records)


SUBSETS = {
    "new": "_new",
    "all": "",
    "old": "_old",
    **{f"fifth {age}": f"_age{age}" for age in range(1, AGES + 1)},
}
"""Name in tables -> end of the metrics' names."""
BY_AGE = ("p95_abs_log_ratio", "effective_sample_size", "zero_fraction", "damped_fraction")


def age(comparison: Comparison) -> Table:
    """What the objective made of new, all and old samples, and of each fifth by age."""
    records = [
        {
            "configuration": one.label,
            "samples": subset,
            **_staleness(one, {name: f"{name}{suffix}" for name in BY_AGE}),
        }
        for one, (subset, suffix) in product(comparison.configurations, SUBSETS.items())
    ]
    return Table.of("staleness_by_age", "Staleness by age", records)


def lag(comparison: Comparison) -> Table:
    """Lag of the samples in iterations and in updates."""
    names = {
        "mean_iterations": "lag_iterations_mean",
        "greatest_iterations": "lag_iterations_max",
        "mean_updates": "lag_mean",
        "p95_updates": "lag_p95",
        "greatest_updates": "lag_max",
    }
    records = [
        {"configuration": one.label, "regime": summary.regime_of(one.runs), **_staleness(one, names)}
        for one in comparison.configurations
    ]
    return Table.of("lag", "Lag", records)


def differences(comparison: Comparison) -> Table | None:
    """Paired differences between all configurations; None for one alone, or for too many."""
    if not 2 <= len(comparison.configurations) <= MOST_COMPARED:
        return None
    records = [
        {"score": score, "configuration": first.label, "minus": second.label, **_difference(result)}
        for score, (first, second) in product(
            comparison.compared_scores, combinations(comparison.configurations, 2)
        )
        if (result := paired_difference(first, second, comparison.source, score))
    ]
    return Table.of("paired_differences", f"Paired differences of {comparison.noun}", records)


def _difference(result: Difference) -> Record:
    return {
        "pairs": result.estimate.count,
        **_estimate(result.estimate, "mean_difference"),
        "deviation": result.deviation,
        "smallest_effect": result.smallest_effect,
    }


def capacity_differences(comparison: Comparison) -> Table | None:
    """What the replay's capacity, and with it the staleness, does to the difference of two objectives.

    Whatever else was set for an objective at a capacity (its learning rate) goes with it; None unless both
    were varied, with one configuration for each objective and capacity.
    """
    objectives: dict[str, dict[int, Configuration]] = {}
    for one in comparison.configurations:
        own = {key: value for key, value in one.values.items() if key.startswith("objective.")}
        by_capacity = objectives.setdefault(label(own, comparison.factors), {})
        if CAPACITY not in one.values or int(one.values[CAPACITY] or 0) in by_capacity:
            return None
        by_capacity[int(one.values[CAPACITY] or 0)] = one
    records: list[Record] = []
    for (first, ours), (second, theirs) in combinations(objectives.items(), 2):
        for small, large in combinations(sorted(ours.keys() & theirs.keys()), 2):
            pairs = (ours[large], theirs[large]), (ours[small], theirs[small])
            for score in comparison.compared_scores:
                result = difference_of_differences(*pairs, comparison.source, score)
                if result:
                    row: Record = {"score": score, "objective": first, "minus": second}
                    row |= {"at_capacity": large, "minus_at_capacity": small}
                    records.append(row | _difference(result))
    title = "Differences between objectives: large capacity minus small"
    return Table.of("capacity_differences", title, records) if records else None


# ------------------------------------------------------------------------------------- sigma x capacity


def has_sigma_and_capacity(comparison: Comparison) -> bool:
    """Whether both were varied."""
    return {SIGMA, CAPACITY} <= set(comparison.factors)


def sigma_by_capacity(
    comparison: Comparison,
) -> tuple[list[str], list[float], dict[tuple[str, float], Configuration]]:
    """Rows (settings but the capacity: each sigma, and each objective that has none), columns, cells."""
    cells = {}
    for one in comparison.configurations:
        rest = {key: value for key, value in one.values.items() if key != CAPACITY}
        row = label(rest, comparison.factors)
        cells[row, float(one.values[CAPACITY] or 0)] = one
    return list(dict.fromkeys(row for row, _ in cells)), sorted({column for _, column in cells}), cells


def sigma_capacity(comparison: Comparison) -> Table:
    """The score for each sigma and capacity, in long form."""
    rows, columns, cells = sigma_by_capacity(comparison)
    records: list[Record] = []
    for row, column in product(rows, columns):
        one = cells.get((row, column))
        if one is None:
            continue
        sigma = one.values.get(SIGMA)
        over_training = score_estimate(one, comparison.source, "over_training")
        records.append(
            {
                "settings": row,
                "sigma": float(sigma) if isinstance(sigma, (int, float)) else None,
                "capacity": int(column),
                "runs": len(one.runs),
                **_estimate(comparison.estimate(one), comparison.score_column),
                **_estimate(over_training, "success_over_training_iqm", "over_training_"),
                "regime": summary.regime_of(one.runs),
            }
        )
    return Table.of("sigma_capacity", "sigma x capacity", records)
