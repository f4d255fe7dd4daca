"""What distinguishes the runs of a comparison: what their sweep varied, or else what their settings tell.

Seeds are replicates and tasks are strata. Every other setting that takes more than one value is a *factor*,
and runs with equal factors form a *configuration*. Where every run has the overrides that a sweep gave it,
only what these varied can be a factor. Settings that cannot change what is learned (paths,
telemetry, checkpoints) are no factors, and neither is what merely follows from the task (its reward scale,
its step limit), from the experiment, or from which objective, credit or policy it is a setting of. What else
was set for each algorithm apart (its learning rate) distinguishes nothing more: it is *confounded* with the
factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from gipo_vla.reporting.runs import Run, Value

NOT_FACTORS = {
    "seed",
    "run_dir",
    "sweep_dir",
    "resume",
    "stop_after",
    "env.task",
    "env.assets",
    "learner.device",
    "learner.threads",
    "learner.zero_stage",
    "learner.micro_batch_segments",
    "replay.memory_limit_gb",
    "rollout.worker_timeout_s",
}
NOT_FACTOR_SECTIONS = ("telemetry.", "checkpoint.", "eval.")
FACTORS_OF_EVALUATION = {"eval.mode"}
"""Of the evaluation's settings, what changes the meaning of its numbers."""

ALGORITHM_SECTIONS = ("objective.", "regularizers.", "credit.", "replay.")
"""Never explained away by the task or the experiment: these are what runs are compared for."""

SIGMA = "objective.sigma"
CAPACITY = "replay.capacity"
OPTIONS = ("objective.name", "credit.name", "policy.name")
"""Choices with settings of their own."""
SET_BY_OPTION = {"credit.name": ("rollout.group_size",)}
"""What choosing one sets elsewhere."""
NAMED_BY_VALUE = ("experiment", *OPTIONS)
"""Factors whose value says enough in a label."""
ORDER = (
    "experiment",
    "objective.name",
    SIGMA,
    "objective.",
    "credit.name",
    "credit.",
    "regularizers.",
    CAPACITY,
    "replay.",
)
"""Beginnings of the factors that come first, in their order."""


@dataclass(frozen=True)
class Configuration:
    """Runs that differ in task and seed only."""

    values: Mapping[str, Value]
    """Factor -> value; a factor that the configuration does not have (sigma of PPO) is absent."""
    label: str
    runs: tuple[Run, ...]
    """Sorted by task and seed."""


class Grouping(NamedTuple):
    """How runs fall into configurations."""

    factors: list[str]
    """Settings that distinguish the configurations, the objective's first."""
    confounded: list[str]
    """Settings that vary too, but that the factors of the algorithm settle."""
    configurations: list[Configuration]
    """Sorted by the values of their factors."""


def group(runs: Sequence[Run]) -> Grouping:
    """Find what distinguishes the runs."""
    varying = varying_factors(runs)
    confounded = _confounded(runs, varying)
    factors = [key for key in varying if key not in confounded]
    members: dict[tuple[tuple[str, Value], ...], list[Run]] = {}
    for run in runs:
        values = tuple((key, run.config[key]) for key in factors if key in run.config)
        members.setdefault(values, []).append(run)
    configurations = []
    for values, own in members.items():
        own.sort(key=lambda run: (run.tasks, _order(run.seed), run.name))
        first = own[0].config
        alone = str(first.get("objective.name", first.get("experiment", "all runs")))
        configurations.append(Configuration(dict(values), label(dict(values), factors) or alone, tuple(own)))
    configurations.sort(key=lambda one: [_order(one.values.get(key)) for key in factors])
    return Grouping(factors, confounded, configurations)


def varying_factors(runs: Sequence[Run]) -> list[str]:
    """Settings that differ from run to run, the objective's first."""
    table = pd.DataFrame([{key: _text(value) for key, value in run.config.items()} for run in runs])
    # A setting that only some have (sigma beside PPO runs) goes with the setting that decides on it.
    varying = [key for key in sorted(table.columns[table.nunique() > 1]) if _can_be_factor(key)]
    varied = _varied_by_sweep(runs, list(table.columns))
    if varied is not None:
        varying = [key for key in varying if key in varied]
    by_task = [", ".join(run.tasks) for run in runs]
    if len(set(by_task)) > 1:
        varying = _unexplained(runs, varying, by_task)
    for name in [key for key in NAMED_BY_VALUE if key in varying]:
        varying = _unexplained(runs, varying, [_text(run.config.get(name)) for run in runs], name)
    return sorted(varying, key=_rank)


def _can_be_factor(key: str) -> bool:
    return key in FACTORS_OF_EVALUATION or not (key in NOT_FACTORS or key.startswith(NOT_FACTOR_SECTIONS))


def _varied_by_sweep(runs: Sequence[Run], keys: Sequence[str]) -> set[str] | None:
    """Settings that the overrides of sweeps varied; None unless those of every run are known.

    An option of a group (``objective=gipo``) is varied with its name, or with all below it if it has none.
    """
    if any(run.overrides is None for run in runs):
        return None
    pairs = [[text.lstrip("+").partition("=")[::2] for text in run.overrides or ()] for run in runs]
    table = pd.DataFrame([dict(own) for own in pairs]).fillna("")
    names = set(table.columns[table.nunique() > 1])
    groups = tuple(f"{name}." for name in names if name not in keys and f"{name}.name" not in keys)
    return {
        key for key in keys if key in names or key.removesuffix(".name") in names or key.startswith(groups)
    }


def _confounded(runs: Sequence[Run], varying: Sequence[str]) -> list[str]:
    """Settings of ``varying`` outside the algorithm whose value the algorithm's ones settle."""
    of_algorithm = [key for key in varying if key.startswith(ALGORITHM_SECTIONS)]
    if not of_algorithm:
        return []
    classes = [repr([_text(run.config.get(key)) for key in of_algorithm]) for run in runs]
    others = [key for key in varying if key not in NAMED_BY_VALUE and key not in of_algorithm]
    left = _unexplained(runs, others, classes)
    return [key for key in others if key not in left]


def _unexplained(
    runs: Sequence[Run], keys: Sequence[str], classes: Sequence[str], name: str = ""
) -> list[str]:
    """``keys`` without those that come with a choice (``name``, if it is a setting), and whose value is
    settled by the class that a run falls into by that choice."""
    if not keys:
        return []
    table = pd.DataFrame([{key: _text(run.config.get(key)) for key in keys} for run in runs])
    settled = (table.groupby(list(classes)).nunique() == 1).all()
    return [key for key in keys if not (settled[key] and _comes_with(name, key))]


def _comes_with(name: str, key: str) -> bool:
    """Whether a choice may bring a setting with it: an option its own ones, anything else all but those of
    the algorithm."""
    if name in OPTIONS:
        return key != name and key.startswith((name.removesuffix("name"), *SET_BY_OPTION.get(name, ())))
    return key != name and not key.startswith(ALGORITHM_SECTIONS)


def _rank(key: str) -> tuple[int, str]:
    return next((rank for rank, prefix in enumerate(ORDER) if key.startswith(prefix)), len(ORDER)), key


def label(values: Mapping[str, Value], factors: Iterable[str], without: str = "") -> str:
    """``gipo, sigma 0.5, capacity 20,000``: short names, whole keys where two would be the same.

    Args:
        values: factor -> value.
        factors: those of the whole comparison.
        without: a factor that is said elsewhere.
    """
    last_parts = [key.rpartition(".")[2] for key in factors]
    parts = []
    for key, value in values.items():
        short = key.rpartition(".")[2]
        name = short if last_parts.count(short) == 1 else key
        if key != without:
            parts.append(show(value) if key in NAMED_BY_VALUE else f"{name} {show(value)}")
    return ", ".join(parts)


def show(value: Value) -> str:
    """A setting for people: 20,000, 0.0003, none."""
    if value is None:
        return "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def _text(value: Value) -> str:
    """Text for comparing: 1 and 1.0 are one value, True and 1 are two."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return repr(float(value)) if number else repr(value)  # type: ignore[arg-type]


def _order(value: Value) -> tuple[int, float, str]:
    """Numbers by size, then texts; absent first."""
    if value is None:
        return 0, 0.0, ""
    if isinstance(value, (int, float)):
        return 1, float(value), ""
    return 2, 0.0, value
