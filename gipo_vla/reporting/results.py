"""The tables of a report, from a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, product

from gipo_vla.objectives.diagnostics import AGES
from gipo_vla.reporting import summary
from gipo_vla.reporting.comparison import Comparison
from gipo_vla.reporting.grouping import CAPACITY, SIGMA, Configuration, label, show
from gipo_vla.reporting.runs import Run
from gipo_vla.reporting.statistics import Difference, Estimate
from gipo_vla.reporting.summary import HELD_OUT_SCORES, mean_over, regime_of
from gipo_vla.reporting.table import Cell, Record, Table

MOST_COMPARED = 16
"""Configurations up to which every pair is compared."""

SAMPLED: Mapping[str, summary.Score] = {
    "sampled": "sampled.success_once",
    "sampled, at end": "sampled.success_at_end",
    "sampled return": "sampled.mean_return",
}
"""What stands beside the score, because greedy actions can hide that a policy is nearly uniform."""


# ------------------------------------------------------------------------------------- parts of their rows


def _estimate(result: Estimate[float] | None, name: str, interval: str = "") -> Record:
    """An estimate's columns: its name, and the ends of its interval, whose names may begin with something."""
    values = (result.value, result.low, result.high) if result else (None, None, None)
    return dict(zip((name, f"{interval}low_95", f"{interval}high_95"), values))


def _over_training(comparison: Comparison, one: Configuration) -> Record:
    result = comparison.estimate(one, "over_training")
    return _estimate(result, "success_over_training_iqm", "over_training_")


def _difference(result: Difference) -> Record:
    return {
        "pairs": result.estimate.count,
        **_estimate(result.estimate, "mean_difference"),
        "deviation": result.deviation,
        "smallest_effect": result.smallest_effect,
    }


def _value(result: Estimate[float] | None) -> float | None:
    return result.value if result else None


def _in_words(result: Estimate[float] | None) -> str | None:
    if result is None:
        return None
    digits = 0 if abs(result.value) >= 100 else 2
    value, *ends = (
        f"{one:,.{digits}f}" for one in (result.value, result.low, result.high) if one is not None
    )
    return f"{value} [{', '.join(ends)}]" if ends else value


def _staleness(one: Configuration, names: Mapping[str, str]) -> Record:
    """Settled means of a configuration: column -> end of the metric's name."""
    return {column: mean_over(one.runs, f"staleness/{name}") for column, name in names.items()}


# -------------------------------------------------------------------------------------------------- scores


def configurations(comparison: Comparison) -> Table:
    """The headline: a row for each configuration."""
    sampled = SAMPLED.values() if comparison.source == "evaluation" else ()
    names = {"mean_lag_iterations": "lag_iterations_mean"}
    names |= {name: name for name in ("p95_abs_log_ratio", "effective_sample_size_old")}
    records = [
        {
            "configuration": one.label,
            "runs": len(one.runs),
            **_estimate(comparison.estimate(one), comparison.score_column),
            "success_at_end_iqm": _value(comparison.estimate(one, "success_at_end")),
            **_over_training(comparison, one),
            "regime": regime_of(one.runs),
            **_staleness(one, names),
            **{
                f"{score.replace('.', '_')}_iqm": _value(comparison.estimate(one, score)) for score in sampled
            },
        }
        for one in comparison.configurations
    ]
    return Table.of("configurations", f"{comparison.noun.capitalize()} and staleness", records)


def readable(comparison: Comparison) -> Table:
    """The same with intervals in words, for people, and the sampled mode beside the greedy one."""
    records = [
        {
            "configuration": one.label,
            comparison.noun: _in_words(comparison.estimate(one)),
            **{
                column: value
                for column, score in SAMPLED.items()
                if score != comparison.score
                and (value := _value(comparison.estimate(one, score))) is not None
            },
            "over training": _value(comparison.estimate(one, "over_training")),
            "regime": regime_of(one.runs),
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
        if (result := comparison.estimate(one, score)) is not None
    ]
    return Table.of("held_out", "Held-out initial states, greedy and sampled", records)


def success_per_task(comparison: Comparison) -> Table:
    """Interquartile mean over seeds for each task and configuration."""
    records = [
        {
            "task": task,
            "configuration": one.label,
            "runs": result.count,
            **_estimate(result, comparison.score_column),
        }
        for task, one in product(comparison.tasks, comparison.configurations)
        if (result := comparison.estimate(one, task=task))
    ]
    return Table.of("success_per_task", f"{comparison.noun.capitalize()} per task", records)


def evaluation(run: Run) -> Table | None:
    """evaluation.json of one run: each task in each mode, with the intervals that it holds."""
    if run.evaluation is None:
        return None
    headline = run.evaluation.get("mode", "")
    records: list[Record] = []
    for mode in dict.fromkeys((headline, "greedy", "sampled")):
        own = run.evaluation if mode == headline else run.evaluation.get(mode)
        if not own:
            continue
        tasks = own.get("tasks", {})
        rows = [*tasks.items(), ("all", own)] if len(tasks) > 1 else [(next(iter(tasks), "all"), own)]
        for name, values in rows:
            low, high = values.get("success_once_interval_95", (None, None))
            records.append(
                {
                    "task": name,
                    "mode": mode,
                    "episodes": values.get("episodes"),
                    "success_once": values.get("success_once"),
                    "low_95": low,
                    "high_95": high,
                    "success_at_end": values.get("success_at_end"),
                    "return": values.get("mean_return"),
                }
            )
    return Table.of("evaluation", "Held-out initial states", records)


# -------------------------------------------------------------------------------------- runs and staleness


def runs(comparison: Comparison) -> Table:
    """A row for each run that counts, with its settings that vary and what is known of its second half."""
    records = []
    for one, run in ((each, run) for each in comparison.configurations for run in each.runs):
        scores = summary.task_scores(run, comparison.source, comparison.score)
        records.append(
            {
                "run": run.name,
                "configuration": one.label,
                "task": ", ".join(run.tasks),
                "seed": _setting(run, "seed"),
                **{key: _setting(run, key) for key in (*comparison.factors, *comparison.confounded)},
                "iterations": run.iterations,
                "env_steps": run.rows[-1]["env_steps"],
                "updates": run.rows[-1].get("updates"),
                "state": "complete" if run.complete else "under way",
                comparison.score: sum(scores.values()) / len(scores) if scores else None,
                "success_over_training": summary.success_over_training(run),
                "regime": regime_of([run]),
                **{metric: summary.settled_mean(run, metric) for metric in summary.SETTLED},
            }
        )
    return Table.of("runs", "Runs", records)


def _setting(run: Run, key: str) -> Cell:
    """A setting for programs: nothing where the run does not have it, ``none`` where it is null."""
    if key not in run.config:
        return None
    value = run.config[key]
    return show(value) if value is None or isinstance(value, bool) else value


def age(comparison: Comparison) -> Table:
    """What the objective made of new, all and old samples, and of each fifth by age."""
    subsets = {"new": "_new", "all": "", "old": "_old"}
    subsets |= {f"fifth {number}": f"_age{number}" for number in range(1, AGES + 1)}
    records = [
        {
            "configuration": one.label,
            "samples": subset,
            **_staleness(one, {name: f"{name}{suffix}" for name in summary.BY_AGE}),
        }
        for one, (subset, suffix) in product(comparison.configurations, subsets.items())
    ]
    return Table.of("staleness_by_age", "Staleness by age", records)


def lag(comparison: Comparison) -> Table:
    """Lag of the samples in iterations and in updates."""
    names = ("mean_iterations", "greatest_iterations", "mean_updates", "p95_updates", "greatest_updates")
    records = [
        {
            "configuration": one.label,
            "regime": regime_of(one.runs),
            **_staleness(one, dict(zip(names, summary.LAGS))),
        }
        for one in comparison.configurations
    ]
    return Table.of("lag", "Lag", records)


# --------------------------------------------------------------------------------------------- differences


def differences(comparison: Comparison) -> Table | None:
    """Paired differences between all configurations; None for one alone, or for too many."""
    if not 2 <= len(comparison.configurations) <= MOST_COMPARED:
        return None
    pairs = combinations(comparison.configurations, 2)
    records = [
        {"score": score, "configuration": first.label, "minus": second.label, **_difference(result)}
        for score, (first, second) in product(comparison.compared_scores, pairs)
        if (result := comparison.difference([first], [second], score))
    ]
    return Table.of("paired_differences", f"Paired differences of {comparison.noun}", records)


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
        both = sorted(ours.keys() & theirs.keys())
        for (small, large), score in product(combinations(both, 2), comparison.compared_scores):
            plus, minus = (ours[large], theirs[small]), (theirs[large], ours[small])
            if result := comparison.difference(plus, minus, score):
                records.append(
                    {
                        "score": score,
                        "objective": first,
                        "minus": second,
                        "at_capacity": large,
                        "minus_at_capacity": small,
                        **_difference(result),
                    }
                )
    title = "Differences between objectives: large capacity minus small"
    return Table.of("capacity_differences", title, records) if records else None


def sigma_by_capacity(
    comparison: Comparison,
) -> tuple[list[str], list[float], dict[tuple[str, float], Configuration]]:
    """Rows (settings but the capacity: each sigma, and each objective that has none), columns, cells; all
    empty unless both were varied."""
    cells: dict[tuple[str, float], Configuration] = {}
    if {SIGMA, CAPACITY} <= set(comparison.factors):
        for one in comparison.configurations:
            row = label(one.values, comparison.factors, without=CAPACITY)
            cells[row, float(one.values[CAPACITY] or 0)] = one
    return list(dict.fromkeys(row for row, _ in cells)), sorted({column for _, column in cells}), cells


def sigma_capacity(comparison: Comparison) -> Table:
    """The score for each sigma and capacity, in long form; without rows unless both were varied."""
    rows, columns, cells = sigma_by_capacity(comparison)
    records = []
    for row, column in product(rows, columns):
        if one := cells.get((row, column)):
            sigma = one.values.get(SIGMA)
            records.append(
                {
                    "settings": row,
                    "sigma": float(sigma) if isinstance(sigma, (int, float)) else None,
                    "capacity": int(column),
                    "runs": len(one.runs),
                    **_estimate(comparison.estimate(one), comparison.score_column),
                    **_over_training(comparison, one),
                    "lag_iterations": mean_over(one.runs, "staleness/lag_iterations_mean"),
                    "regime": regime_of(one.runs),
                }
            )
    return Table.of("sigma_capacity", "sigma x capacity", records)
