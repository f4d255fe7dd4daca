"""What is compared with what: which runs count, in which configurations, by which score."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from gipo_vla.reporting import summary
from gipo_vla.reporting.grouping import Configuration, group, show
from gipo_vla.reporting.runs import Run, Value
from gipo_vla.reporting.statistics import Array, Difference, Estimate, estimate, mean_difference
from gipo_vla.reporting.summary import Score, Source


@dataclass(frozen=True)
class Comparison:
    """Everything that tables and figures are made of."""

    runs: tuple[Run, ...]
    """Those that count, configuration by configuration."""
    left_out: tuple[Run, ...]
    factors: tuple[str, ...]
    confounded: tuple[str, ...]
    """Settings that vary with the factors; a remark has their values."""
    configurations: tuple[Configuration, ...]
    tasks: tuple[str, ...]
    source: Source
    remarks: tuple[str, ...]
    """What a reader must know about the choice of runs and scores."""

    @property
    def single(self) -> bool:
        """One run, so nothing to aggregate."""
        return len(self.runs) == 1


def compare(found: Sequence[Run], remarks: Sequence[str] = ()) -> Comparison:
    """Choose runs and score; the order in which runs come makes no difference."""
    remarks = list(remarks)
    runs = _without_copies(sorted(found, key=lambda run: run.name), remarks)
    counted = [run for run in runs if run.complete] or runs
    left_out = [run for run in runs if run not in counted]
    if left_out:
        remarks.append(f"{len(left_out)} of {len(runs)} runs have not ended and do not count")
    elif not counted[0].complete:
        remarks.append("no run has ended: scores are those of the iterations done so far")
    with_evaluation = sum(run.evaluation is not None for run in counted)
    source: Source = "evaluation" if with_evaluation == len(counted) else "training"
    if 0 < with_evaluation < len(counted):
        remarks.append(
            f"only {with_evaluation} of {len(counted)} runs have an evaluation.json: scores are the success "
            "of the last training episodes for all"
        )
    modes = {run.evaluation["mode"] for run in counted if run.evaluation and "mode" in run.evaluation}
    if source == "evaluation" and len(modes) > 1:
        remarks.append(f"the evaluations differ in mode ({', '.join(sorted(modes))}): do not compare them")
    factors, confounded, configurations = group(counted)
    remarks += [_confounding(key, configurations) for key in confounded]
    for one in configurations:
        repeated = _repeated_replicates(one.runs)
        if repeated:
            remarks.append(f"{one.label}: {repeated} runs repeat a seed and count as if independent")
    if len({_replicates(one.runs) for one in configurations}) > 1:
        remarks.append(
            "configurations differ in the tasks or seeds that they have: their means are over other things; "
            "paired differences are over what two share"
        )
    return Comparison(
        runs=tuple(run for one in configurations for run in one.runs),
        left_out=tuple(left_out),
        factors=tuple(factors),
        confounded=tuple(confounded),
        configurations=tuple(configurations),
        tasks=tuple(sorted({task for run in counted for task in run.tasks})),
        source=source,
        remarks=tuple(remarks),
    )


def _confounding(key: str, configurations: Sequence[Configuration]) -> str:
    """``learner.rate was set with the rest: 0.001, but 0.0003 for ppo``; the most frequent value first."""
    having: dict[str, list[str]] = {}
    for one in configurations:
        having.setdefault(show(one.runs[0].config.get(key)), []).append(one.label)
    usual, *others = sorted(having, key=lambda value: -len(having[value]))
    exceptions = "; ".join(f"{value} for {' and for '.join(having[value])}" for value in others)
    return f"{key} was set with the rest: {usual}, but {exceptions}"


def _without_copies(runs: Sequence[Run], remarks: list[str]) -> list[Run]:
    """Drop runs whose settings and metrics are those of another: a copy is no second sample."""
    kept: dict[str, Run] = {}
    for run in runs:
        values = {key: value for key, value in run.config.items() if key not in ("run_dir", "resume")}
        content = hashlib.sha256(json.dumps([values, list(run.rows)], sort_keys=True).encode()).hexdigest()
        if content in kept:
            remarks.append(f"{run.name} is left out: a copy of {kept[content].name}")
        kept.setdefault(content, run)
    return list(kept.values())


def _repeated_replicates(runs: Sequence[Run]) -> int:
    return len(runs) - len(_replicates(runs))


def _replicates(runs: Sequence[Run]) -> frozenset[tuple[tuple[str, ...], Value]]:
    return frozenset((run.tasks, run.seed) for run in runs)


def score_strata(
    configuration: Configuration, source: Source, score: Score = "success_once"
) -> dict[str, Array]:
    """Scores of a configuration: task -> array over runs."""
    strata: dict[str, list[float]] = {}
    for run in configuration.runs:
        for task, value in summary.task_scores(run, source, score).items():
            strata.setdefault(task, []).append(value)
    return {task: np.array(strata[task]) for task in sorted(strata)}


def score_estimate(
    configuration: Configuration, source: Source, score: Score = "success_once"
) -> Estimate | None:
    """Interquartile mean over tasks and seeds; None where nothing is known of the score."""
    strata = score_strata(configuration, source, score)
    return estimate(list(strata.values())) if strata else None


def paired_difference(
    first: Configuration, second: Configuration, source: Source, score: Score = "success_once"
) -> Difference | None:
    """Mean of (first - second) over the tasks and seeds that both have; None where they share none."""
    return _mean_contrast({1: (first,), -1: (second,)}, source, score)


def difference_of_differences(
    first: tuple[Configuration, Configuration],
    second: tuple[Configuration, Configuration],
    source: Source,
    score: Score = "success_once",
) -> Difference | None:
    """Mean of (a - b) of the first pair minus (a - b) of the second, over what all four share."""
    return _mean_contrast({1: (first[0], second[1]), -1: (first[1], second[0])}, source, score)


def _mean_contrast(
    signed: Mapping[int, Sequence[Configuration]], source: Source, score: Score
) -> Difference | None:
    terms = [(sign, _by_replicate(one, source, score)) for sign, own in signed.items() for one in own]
    shared = set.intersection(*(set(scores) for _, scores in terms))
    ordered = sorted(shared, key=lambda key: (key[0], str(key[1])))
    strata = [
        np.array([sum(sign * scores[key] for sign, scores in terms) for key in keys])
        for _, keys in groupby(ordered, key=lambda key: key[0])
    ]
    return mean_difference(strata) if strata else None


def _by_replicate(
    configuration: Configuration, source: Source, score: Score
) -> dict[tuple[str, Value], float]:
    return {
        (task, run.seed): value
        for run in configuration.runs
        for task, value in summary.task_scores(run, source, score).items()
    }
