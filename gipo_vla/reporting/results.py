"""The tables of a report, from a comparison."""

from __future__ import annotations

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
from gipo_vla.reporting.summary import Score, mean_over, settled_mean, task_scores
from gipo_vla.reporting.table import Cell, Table

MOST_COMPARED = 16
"""Configurations up to which every pair is compared."""


def _cells(result: Estimate | None) -> list[Cell]:
    return [result.value, result.low, result.high] if result else [None, None, None]


def configurations(comparison: Comparison) -> Table:
    """The headline: a row for each configuration."""
    rows: list[list[Cell]] = []
    for one in comparison.configurations:
        score = score_estimate(one, comparison.source)
        at_end = score_estimate(one, comparison.source, "success_at_end")
        rows.append(
            [
                one.label,
                len(one.runs),
                *_cells(score),
                _value(at_end),
                *_cells(score_estimate(one, comparison.source, "over_training")),
                summary.regime_of(one.runs),
                mean_over(one.runs, "staleness/lag_iterations_mean"),
                mean_over(one.runs, "staleness/p95_abs_log_ratio"),
                mean_over(one.runs, "staleness/effective_sample_size_old"),
            ]
        )
    return Table(
        "configurations",
        "Success and staleness",
        (
            "configuration",
            "runs",
            "success_iqm",
            "low_95",
            "high_95",
            "success_at_end_iqm",
            "success_over_training_iqm",
            "over_training_low_95",
            "over_training_high_95",
            "regime",
            "mean_lag_iterations",
            "p95_abs_log_ratio",
            "effective_sample_size_old",
        ),
        rows,
    )


def readable(comparison: Comparison) -> Table:
    """The same with intervals in words, for people."""
    rows: list[list[Cell]] = [
        [
            one.label,
            _in_words(score_estimate(one, comparison.source)),
            _value(score_estimate(one, comparison.source, "over_training")),
            summary.regime_of(one.runs),
            mean_over(one.runs, "staleness/lag_iterations_mean"),
            mean_over(one.runs, "staleness/p95_abs_log_ratio"),
        ]
        for one in comparison.configurations
    ]
    columns = ("configuration", "success", "over training", "regime", "lag", "P95")
    return Table("readable", "Success (IQM), mean lag in iterations, P95 |log rho|", columns, rows)


def _value(result: Estimate | None) -> float | None:
    return result.value if result else None


def _in_words(result: Estimate | None) -> str | None:
    if result is None or result.low is None:
        return f"{result.value:.2f}" if result else None
    return f"{result.value:.2f} [{result.low:.2f}, {result.high:.2f}]"


def runs(comparison: Comparison) -> Table:
    """A row for each run that counts, with its settings that vary and what is known of its second half."""
    varied = (*comparison.factors, *comparison.confounded)
    rows: list[list[Cell]] = []
    for one in comparison.configurations:
        for run in one.runs:
            scores = task_scores(run, comparison.source)
            rows.append(
                [
                    run.name,
                    one.label,
                    ", ".join(run.tasks),
                    _setting(run, "seed"),
                    *[_setting(run, key) for key in varied],
                    run.iterations,
                    run.rows[-1]["env_steps"],
                    run.rows[-1].get("updates"),
                    "complete" if run.complete else "under way",
                    sum(scores.values()) / len(scores),
                    summary.success_over_training(run),
                    summary.regime_of([run]),
                    *[settled_mean(run, metric) for metric in summary.SETTLED],
                ]
            )
    columns = (
        "run",
        "configuration",
        "task",
        "seed",
        *varied,
        "iterations",
        "env_steps",
        "updates",
        "state",
        "success_once",
        "success_over_training",
        "regime",
        *summary.SETTLED,
    )
    return Table("runs", "Runs", columns, rows)


def _setting(run: Run, key: str) -> Cell:
    """A setting for programs: nothing where the run does not have it, ``none`` where it is null."""
    if key not in run.config:
        return None
    value = run.config[key]
    return show(value) if value is None or isinstance(value, bool) else value


def success_per_task(comparison: Comparison) -> Table:
    """Interquartile mean over seeds for each task and configuration."""
    rows: list[list[Cell]] = []
    for task in comparison.tasks:
        for one in comparison.configurations:
            scores = score_strata(one, comparison.source).get(task)
            if scores is not None:
                rows.append([task, one.label, len(scores), *_cells(estimate([scores]))])
    columns = ("task", "configuration", "runs", "success_iqm", "low_95", "high_95")
    return Table("success_per_task", "Success per task", columns, rows)


def evaluation(run: Run) -> Table | None:
    """evaluation.json of one run: each task in each mode, with the intervals that it holds."""
    if run.evaluation is None:
        return None
    rows: list[list[Cell]] = []
    headline = run.evaluation.get("mode", "")
    for mode in dict.fromkeys((headline, "greedy", "sampled")):
        own = run.evaluation if mode == headline else run.evaluation.get(mode)
        if not own:
            continue
        tasks = own.get("tasks", {})
        for name, values in [*(tasks.items() if len(tasks) > 1 else []), ("all", own)]:
            low, high = values.get("success_once_interval_95", (None, None))
            name = next(iter(tasks)) if name == "all" and len(tasks) == 1 else name
            keys = ("success_at_end", "mean_return")
            rows.append(
                [name, mode, values["episodes"], values["success_once"], low, high, *map(values.get, keys)]
            )
    columns = ("task", "mode", "episodes", "success_once", "low_95", "high_95", "success_at_end", "return")
    return Table("evaluation", "Held-out initial states", columns, rows)


def age(comparison: Comparison) -> Table:
    """What the objective made of new, all and old samples, and of each fifth by age."""
    names = (
        "p95_abs_log_ratio",
        "effective_sample_size",
        "zero_fraction",
        "damped_fraction",
    )
    rows: list[list[Cell]] = [
        [one.label, subset, *[mean_over(one.runs, f"staleness/{name}{suffix}") for name in names]]
        for one in comparison.configurations
        for subset, suffix in SUBSETS.items()
    ]
    return Table("staleness_by_age", "Staleness by age", ("configuration", "samples", *names), rows)


SUBSETS = {
    "new": "_new",
    "all": "",
    "old": "_old",
    **{f"fifth {age}": f"_age{age}" for age in range(1, AGES + 1)},
}
"""Name in tables -> end of the metrics' names."""


def lag(comparison: Comparison) -> Table:
    """Lag of the samples in iterations and in updates."""
    names = ("lag_iterations_mean", "lag_iterations_max", "lag_mean", "lag_p95", "lag_max")
    rows: list[list[Cell]] = [
        [
            one.label,
            summary.regime_of(one.runs),
            *[mean_over(one.runs, f"staleness/{name}") for name in names],
        ]
        for one in comparison.configurations
    ]
    columns = (
        "configuration",
        "regime",
        "mean_iterations",
        "greatest_iterations",
        "mean_updates",
        "p95_updates",
        "greatest_updates",
    )
    return Table("lag", "Lag", columns, rows)


def differences(comparison: Comparison) -> Table | None:
    """Paired differences between all configurations; None for one alone, or for too many."""
    if not 2 <= len(comparison.configurations) <= MOST_COMPARED:
        return None
    rows: list[list[Cell]] = []
    for score, (first, second) in product(COMPARED_SCORES, combinations(comparison.configurations, 2)):
        result = paired_difference(first, second, comparison.source, score)
        if result:
            rows.append([score, first.label, second.label, *_difference_cells(result)])
    columns = ("score", "configuration", "minus", *DIFFERENCE_COLUMNS)
    return Table("paired_differences", "Paired differences of success", columns, rows) if rows else None


COMPARED_SCORES: tuple[Score, ...] = ("success_once", "over_training")
"""Of which differences are taken; where all configurations end near 1, the second says more."""
DIFFERENCE_COLUMNS = ("pairs", "mean_difference", "low_95", "high_95", "deviation", "smallest_effect")


def _difference_cells(result: Difference) -> list[Cell]:
    return [result.estimate.count, *_cells(result.estimate), result.deviation, result.smallest_effect]


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
    rows: list[list[Cell]] = []
    for (first, ours), (second, theirs) in combinations(objectives.items(), 2):
        for small, large in combinations(sorted(ours.keys() & theirs.keys()), 2):
            pairs = (ours[large], theirs[large]), (ours[small], theirs[small])
            for score in COMPARED_SCORES:
                result = difference_of_differences(*pairs, comparison.source, score)
                if result:
                    rows.append([score, first, second, large, small, *_difference_cells(result)])
    columns = ("score", "objective", "minus", "at_capacity", "minus_at_capacity", *DIFFERENCE_COLUMNS)
    title = "Differences between objectives: large capacity minus small"
    return Table("capacity_differences", title, columns, rows) if rows else None


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
    """Success for each sigma and capacity, in long form."""
    rows_of, columns_of, cells = sigma_by_capacity(comparison)
    rows: list[list[Cell]] = []
    for row in rows_of:
        for column in columns_of:
            one = cells.get((row, column))
            if one is None:
                continue
            sigma = one.values.get(SIGMA)
            rows.append(
                [
                    row,
                    float(sigma) if isinstance(sigma, (int, float)) else None,
                    int(column),
                    len(one.runs),
                    *_cells(score_estimate(one, comparison.source)),
                    *_cells(score_estimate(one, comparison.source, "over_training")),
                    summary.regime_of(one.runs),
                ]
            )
    columns = (
        "settings",
        "sigma",
        "capacity",
        "runs",
        "success_iqm",
        "low_95",
        "high_95",
        "success_over_training_iqm",
        "over_training_low_95",
        "over_training_high_95",
        "regime",
    )
    return Table("sigma_capacity", "sigma x capacity", columns, rows)
