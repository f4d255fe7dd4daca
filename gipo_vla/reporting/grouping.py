"""What distinguishes the runs of a comparison, found from their settings.

Seeds are replicates and tasks are strata. Every other setting that takes more than one value is a *factor*,
and runs with equal factors form a *configuration*. Settings that cannot change what is learned (paths,
telemetry, checkpoints) are no factors, and neither is what merely follows from the task (its reward scale,
its step limit), from the experiment, or from which objective, credit or policy it is a setting of. What else
was set for each algorithm apart (its learning rate) distinguishes nothing more: it is *confounded* with the
factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
    configurations = [
        Configuration(
            dict(values),
            label(dict(values), factors) or plain_label(own),
            tuple(sorted(own, key=_by_replicate)),
        )
        for values, own in members.items()
    ]
    configurations.sort(key=lambda one: [_order(one.values.get(key)) for key in factors])
    return Grouping(factors, confounded, configurations)


def varying_factors(runs: Sequence[Run]) -> list[str]:
    """Settings that differ from run to run, the objective's first."""
    varying = [key for key in sorted({key for run in runs for key in run.config}) if _varies(runs, key)]
    by_task = {run.name: ", ".join(run.tasks) for run in runs}
    if len(set(by_task.values())) > 1:
        varying = [key for key in varying if not _follows(runs, key, by_task)]
    if "experiment" in varying:
        by_experiment = {run.name: str(run.config.get("experiment")) for run in runs}
        varying = [key for key in varying if key == "experiment" or not _follows(runs, key, by_experiment)]
    for name in [key for key in OPTIONS if key in varying]:
        by_option = {run.name: str(run.config.get(name)) for run in runs}
        own = (name.removesuffix("name"), *SET_BY_OPTION.get(name, ()))
        varying = [
            key
            for key in varying
            if key == name or not key.startswith(own) or not _is_settled(runs, key, by_option)
        ]
    return sorted(varying, key=_rank)


def _varies(runs: Sequence[Run], key: str) -> bool:
    if key not in FACTORS_OF_EVALUATION and (key in NOT_FACTORS or key.startswith(NOT_FACTOR_SECTIONS)):
        return False
    # A setting that only some have (sigma beside PPO runs) goes with the setting that decides on it.
    return len({_text(run.config[key]) for run in runs if key in run.config}) > 1


def _confounded(runs: Sequence[Run], varying: Sequence[str]) -> list[str]:
    """Settings of ``varying`` outside the algorithm whose value the algorithm's ones settle."""
    of_algorithm = [key for key in varying if key.startswith(ALGORITHM_SECTIONS)]
    if not of_algorithm:
        return []
    classes = {run.name: repr([_text(run.config.get(key)) for key in of_algorithm]) for run in runs}
    return [key for key in varying if key not in NAMED_BY_VALUE and _follows(runs, key, classes)]


def _follows(runs: Sequence[Run], key: str, classes: Mapping[str, str]) -> bool:
    """Whether task, experiment or algorithm explain ``key`` away."""
    return not key.startswith(ALGORITHM_SECTIONS) and _is_settled(runs, key, classes)


def _is_settled(runs: Sequence[Run], key: str, classes: Mapping[str, str]) -> bool:
    """Whether the class of a run (its task, its experiment, its credit) settles the value of ``key``."""
    seen: dict[str, set[str]] = {}
    for run in runs:
        seen.setdefault(classes[run.name], set()).add(_text(run.config.get(key)))
    return all(len(values) == 1 for values in seen.values())


def _rank(key: str) -> tuple[int, str]:
    order = (
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
    for rank, prefix in enumerate(order):
        if key.startswith(prefix):
            return rank, key
    return len(order), key


def label(values: Mapping[str, Value], factors: Iterable[str]) -> str:
    """``gipo, sigma 0.5, capacity 20,000``: short names, whole keys where two would be the same."""
    last_parts = [key.rpartition(".")[2] for key in factors]
    parts = []
    for key, value in values.items():
        short = key.rpartition(".")[2]
        name = short if last_parts.count(short) == 1 else key
        parts.append(show(value) if key in NAMED_BY_VALUE else f"{name} {show(value)}")
    return ", ".join(parts)


def plain_label(runs: Sequence[Run]) -> str:
    """Label of the only configuration there is."""
    return str(runs[0].config.get("objective.name", runs[0].config.get("experiment", "all runs")))


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
    return (
        repr(float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else repr(value)
    )


def _order(value: Value) -> tuple[int, float, str]:
    """Numbers by size, then texts; absent first."""
    if value is None:
        return 0, 0.0, ""
    if isinstance(value, (int, float)):
        return 1, float(value), ""
    return 2, 0.0, value


def _by_replicate(run: Run) -> tuple[tuple[str, ...], tuple[int, float, str], str]:
    return run.tasks, _order(run.seed), run.name
