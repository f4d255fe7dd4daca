"""What is compared with what: which runs count, in which configurations, by which score."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gipo_envs.errors import UserError
from gipo_vla.reporting import summary
from gipo_vla.reporting.grouping import Configuration, group, show
from gipo_vla.reporting.runs import Run
from gipo_vla.reporting.statistics import Array, Difference, Estimate, estimate, mean_difference
from gipo_vla.reporting.summary import HeldOutScore, Score, Source


@dataclass(frozen=True)
class Comparison:
    """Everything that tables and figures are made of.

    Methods that take a ``score`` are about the one that the runs are compared by, unless another is given.
    """

    left_out: tuple[Run, ...]
    factors: tuple[str, ...]
    confounded: tuple[str, ...]
    """Settings that vary with the factors; a remark has their values."""
    configurations: tuple[Configuration, ...]
    source: Source
    remarks: tuple[str, ...]
    """What a reader must know about the choice of runs and scores."""
    score: HeldOutScore

    @property
    def runs(self) -> tuple[Run, ...]:
        """Those that count, configuration by configuration."""
        return tuple(run for one in self.configurations for run in one.runs)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(sorted({task for run in self.runs for task in run.tasks}))

    @property
    def single(self) -> bool:
        """One run, so nothing to aggregate."""
        return len(self.runs) == 1

    @property
    def compared_scores(self) -> tuple[Score, ...]:
        """Scores that differences are taken of; where all configurations end near 1, the second says more."""
        return (self.score, "over_training")

    @property
    def score_column(self) -> str:
        """Name of the score's interquartile mean in tables."""
        return "success_iqm" if self.score == "success_once" else f"{self.score}_iqm"

    @property
    def noun(self) -> str:
        """The score for people: success, sampled return."""
        mode, _, name = self.score.rpartition(".")
        words = {"success_once": "success", "success_at_end": "success at the end", "mean_return": "return"}
        return f"{mode} {words[name]}".strip()

    @property
    def is_rate(self) -> bool:
        """The score is a share of episodes, from 0 to 1."""
        return not self.score.endswith("return")

    def strata(self, configuration: Configuration, score: Score | None = None) -> dict[str, Array]:
        """Scores of a configuration's runs: task -> array over seeds; empty where they are not known."""
        return _strata(self._scores(configuration, score))

    def estimate(
        self, configuration: Configuration, score: Score | None = None, task: str | None = None
    ) -> Estimate[float] | None:
        """Interquartile mean over all tasks or of one, and over seeds; None where no score is known."""
        strata = self.strata(configuration, score)
        own = [scores for name, scores in strata.items() if task in (None, name)]
        return estimate(own) if own else None

    def difference(
        self, plus: Sequence[Configuration], minus: Sequence[Configuration], score: Score | None = None
    ) -> Difference | None:
        """Mean of (sum of ``plus`` - sum of ``minus``) over the tasks and seeds that all of them have.

        One of each make a paired difference, two of each a difference between differences. None where they
        share nothing.
        """
        terms = [self._scores(one, score) for one in (*plus, *minus)]
        unique = [own[~own.index.duplicated(keep="last")] for own in terms]
        # Sorted, so that the bootstrap draws the same whatever the order of the runs.
        table = pd.concat(unique, axis=1, join="inner").sort_index()
        if table.empty:
            return None
        contrast = table.iloc[:, : len(plus)].sum(axis=1) - table.iloc[:, len(plus) :].sum(axis=1)
        return mean_difference(list(_strata(contrast).values()))

    def _scores(self, configuration: Configuration, score: Score | None) -> pd.Series[float]:
        """Scores by (task, seed), sorted by task."""
        found = [
            (task, str(run.seed), value)
            for run in configuration.runs
            for task, value in summary.task_scores(run, self.source, score or self.score).items()
        ]
        table = pd.DataFrame(found, columns=["task", "seed", "score"]).set_index(["task", "seed"])["score"]
        return table.sort_index(level="task", sort_remaining=False, kind="stable")


def _strata(values: pd.Series[float]) -> dict[str, Array]:
    return {str(task): np.asarray(own, np.float64) for task, own in values.groupby(level="task")}


def compare(
    found: Sequence[Run], remarks: Sequence[str] = (), score: HeldOutScore = "success_once"
) -> Comparison:
    """Choose runs and where their scores come from; the order in which runs come makes no difference.

    Raises:
        UserError: the runs do not have this score.
    """
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
    if score != "success_once" and not (
        source == "evaluation" and all(summary.task_scores(run, source, score) for run in counted)
    ):
        raise UserError(
            f"score={score} is of the evaluation at the end, and not every run has it: use score=success_once"
        )
    modes = {run.evaluation["mode"] for run in counted if run.evaluation and "mode" in run.evaluation}
    if source == "evaluation" and len(modes) > 1:
        remarks.append(f"the evaluations differ in mode ({', '.join(sorted(modes))}): do not compare them")
    factors, confounded, configurations = group(counted)
    remarks += [_confounding(key, configurations) for key in confounded]
    replicates = [{(run.tasks, run.seed) for run in one.runs} for one in configurations]
    for one, own in zip(configurations, replicates):
        if repeated := len(one.runs) - len(own):
            remarks.append(f"{one.label}: {repeated} runs repeat a seed and count as if independent")
    if any(own != replicates[0] for own in replicates):
        remarks.append(
            "configurations differ in the tasks or seeds that they have: their means are over other things; "
            "paired differences are over what two share"
        )
    return Comparison(
        tuple(left_out),
        tuple(factors),
        tuple(confounded),
        tuple(configurations),
        source,
        tuple(remarks),
        score,
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
