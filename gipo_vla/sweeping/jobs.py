"""From combinations to jobs: what does not apply is left out, what is equal is one, and everything is checked
before anything runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from gipo_envs.errors import UserError
from gipo_vla.assembly import environment_spec
from gipo_vla.run.plan import RunPlan, plan_run
from gipo_vla.settings import runs
from gipo_vla.settings.composition import MISSING, compose_yaml, groups
from gipo_vla.settings.runs import SESSION_KEYS
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.sweeping.grid import combinations, factor_keys, varied_keys
from gipo_vla.sweeping.settings import SweepSettings, key_of
from gipo_vla.sweeping.values import canonical, meaning

DIGEST_LENGTH = 10
"""Hexadecimal digits: two of a thousand jobs share one with a probability below one in a million."""
LONGEST_WORDS = 80
NAMED_BY_VALUE = ("experiment", "env.task", "objective", "credit", "policy", "env")
"""Keys whose value says enough in a name."""

Overrides = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    name: str
    """Name of its folder: words for people, then ``digest``."""
    digest: str
    """Digest of its overrides, in any order and notation; identifies the job."""
    overrides: Overrides
    settings: TrainingSettings
    plan: RunPlan
    """What follows from the settings: env steps, expected lag, memory, duration."""
    factors: Mapping[str, Any]
    """Value of each setting in ``JobList.factors`` that the job has."""

    @property
    def arguments(self) -> list[str]:
        """Arguments for the command of a run."""
        return [f"{key}={value}" for key, value in self.overrides]


@dataclass(frozen=True)
class JobList:
    """All jobs of a sweep."""

    jobs: tuple[Job, ...]
    varied: tuple[str, ...]
    """Keys that list more than one value: what folders are named by."""
    factors: tuple[str, ...]
    """Keys in which jobs may differ: those varied, and those that some arms set and others leave alone."""
    arms: tuple[tuple[str, ...], ...]
    collapsed: int
    """Combinations that became the same job as another when settings that do not apply were left out."""
    left_out: tuple[str, ...]
    """Keys of such settings."""


def plan(settings: SweepSettings) -> JobList:
    """Make and validate every job.

    A setting that a job's options do not have (sigma of PPO) is left out of it, if another job's options
    have it. One that no job has is a mistake, and stays in to be reported as one; unless it comes from a
    ready-made sweep, of which the command line took only a part.

    Raises:
        UserError: whatever is wrong with any of them, naming the job.
    """
    if not settings.overrides and not settings.arms:
        raise UserError("say what to run: key=value,value for a grid, or sweep=NAME (see --help)")
    every = combinations(settings)
    varied, factors = varied_keys(settings), factor_keys(settings)
    chosen = {_options(one.items()) for one in every}
    # Of all that a ready-made sweep lists, only the options decide.
    ready_made = tuple(text for text in settings.ready_made if _is_option(key_of(text)))
    as_written = {_options(one.items()) for one in combinations(replace(settings, overrides=ready_made))}
    inherited = {key_of(text) for text in settings.overrides if text in settings.ready_made}
    jobs: dict[str, Job] = {}
    left_out: set[str] = set()
    for combination in every:
        options, kept = _options(combination.items()), []
        for key, value in combination.items():
            others = chosen | as_written if key in inherited else chosen
            own = _is_option(key) or key.startswith("+") or _has(options, key)
            if own or not any(_has(other, key) for other in others):
                kept.append((key, value))
            else:
                left_out.add(key)
        digest = digest_of(tuple(kept))
        if digest not in jobs:
            jobs[digest] = _job(tuple(kept), digest, varied, factors, settings.ranks)
    return JobList(
        tuple(jobs.values()),
        tuple(varied),
        tuple(factors),
        settings.arms,
        len(every) - len(jobs),
        tuple(sorted(left_out)),
    )


# A grid has hundreds of jobs and few choices of options: what depends on those alone is worked out once.


def _is_option(key: str) -> bool:
    """Whether an override chooses an option of a config group."""
    return key.lstrip("+") in _groups()


@cache
def _groups() -> frozenset[str]:
    return frozenset(groups())


def _options(overrides: Iterable[tuple[str, str]]) -> Overrides:
    return tuple((key, value) for key, value in overrides if _is_option(key))


@cache
def _base(options: Overrides) -> DictConfig:
    """The YAML settings under a choice of options."""
    return compose_yaml("train", [f"{key}={value}" for key, value in options])


@cache
def _has(options: Overrides, key: str) -> bool:
    """Whether there is such a setting under these options."""
    return OmegaConf.select(_base(options), key, default=MISSING) is not MISSING


def _job(overrides: Overrides, digest: str, varied: Sequence[str], factors: Sequence[str], ranks: int) -> Job:
    try:
        settings = _settings(overrides)
        # Of the device only the kind counts: jobs that leave the choice to the machine are planned as on a
        # GPU if this machine, which is where a sweep is planned, has one.
        device = settings.learner.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        predicted = plan_run(settings, environment_spec(settings), ranks, device)
    except UserError as error:
        said = ", ".join(f"{key}={value}" for key, value in overrides if key_of(key) in varied)
        raise UserError(f"{error} (in the job {said})" if said else str(error)) from error
    given = {key_of(key): value for key, value in overrides}
    words = name_words(given, varied) or settings.experiment
    values = _factor_values(given, factors, settings)
    return Job(f"{words}-{digest}", digest, overrides, settings, predicted, values)


def _settings(overrides: Overrides) -> TrainingSettings:
    """What ``runs.load`` gives for the same overrides, without composing anew for every job."""
    options = _options(overrides)
    values = _base(options).copy()
    for key, text in overrides:
        if _is_option(key):
            continue
        if not _has(options, key):  # added, or unknown: Hydra knows how, or what to say
            return runs.load("train", [f"{key}={text}" for key, text in overrides])
        OmegaConf.update(values, key, meaning(key, text))
    return runs.typed(values, TrainingSettings)


def _factor_values(
    given: Mapping[str, str], factors: Sequence[str], settings: TrainingSettings
) -> dict[str, Any]:
    """Values of the factors: as given, else as the job's settings have them."""
    every = OmegaConf.create(runs.to_dict(settings))
    values = {}
    for key in factors:
        if key in given:
            values[key] = meaning(key, given[key])
            continue
        value = OmegaConf.select(every, f"{key}.name" if _is_option(key) else key, default=MISSING)
        if value is not MISSING:
            values[key] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return values


def digest_of(overrides: Overrides) -> str:
    """Identifies a job by what it is given; the same in any order, for ``1e-3`` and ``0.001``, and whatever
    else the sweep has."""
    named = [(key_of(key), value) for key, value in overrides]
    pairs = sorted((key, canonical(key, value)) for key, value in named if key not in SESSION_KEYS)
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:DIGEST_LENGTH]


def name_words(values: Mapping[str, str], varied: Sequence[str]) -> str:
    """``gipo-sigma0.5-capacity5000-seed0``: what distinguishes a job within its sweep."""
    last_parts = [key.rpartition(".")[2] for key in varied]
    words = []
    for key, last in zip(varied, last_parts):
        if key in values:
            name = "" if key in NAMED_BY_VALUE else last if last_parts.count(last) == 1 else key
            words.append(re.sub(r"[^A-Za-z0-9.+_-]+", "_", f"{name}{values[key]}").strip("_"))
    return "-".join(words)[:LONGEST_WORDS].rstrip("-_.")
