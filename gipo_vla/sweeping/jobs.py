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

from omegaconf import DictConfig, OmegaConf

from gipo_envs.errors import UserError
from gipo_vla import config
from gipo_vla.assembly import environment_spec
from gipo_vla.composing import MISSING, compose_yaml, groups
from gipo_vla.config import SESSION_KEYS, Config
from gipo_vla.planning import vector_steps
from gipo_vla.replay.plan import StalenessPlan, staleness_plan
from gipo_vla.sweeping.grid import Combination, combinations, factor_keys, varied_keys
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
    settings: Config
    env_steps: int
    """Env steps of the whole run."""
    staleness: StalenessPlan
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

    Raises:
        UserError: whatever is wrong with any of them, naming the job.
    """
    if not settings.overrides and not settings.arms:
        raise UserError("say what to run: key=value,value for a grid, or sweep=NAME (see --help)")
    every = combinations(settings)
    varied, factors = varied_keys(settings), factor_keys(settings)
    applicable = _Applicable(every, settings)
    jobs: dict[str, Job] = {}
    for combination in every:
        overrides = applicable.of(combination)
        digest = digest_of(overrides)
        if digest not in jobs:
            jobs[digest] = _job(overrides, digest, varied, factors, settings.ranks)
    return JobList(
        tuple(jobs.values()),
        tuple(varied),
        tuple(factors),
        settings.arms,
        len(every) - len(jobs),
        tuple(sorted(applicable.left_out)),
    )


# ------------------------------------------------------------------------------------- what applies to whom


class _Applicable:
    """Leaves out settings that an option does not have (sigma of PPO), if another combination's option has
    them. A setting that no combination has is a mistake, and stays in to be reported as one; unless it comes
    from a ready-made sweep, of which the command line took only a part."""

    def __init__(self, every: Sequence[Combination], settings: SweepSettings) -> None:
        self.choices = {_options(one.items()) for one in every}
        self.inherited = {key_of(text) for text in settings.overrides if text in settings.ready_made}
        options = tuple(text for text in settings.ready_made if _is_option(key_of(text)))
        written = combinations(replace(settings, overrides=options))  # of all that it lists, options decide
        self.choices_as_written = {_options(one.items()) for one in written}
        self.left_out: set[str] = set()

    def of(self, combination: Combination) -> Overrides:
        """The overrides of a combination that apply to it."""
        own = _options(combination.items())
        kept = []
        for key, value in combination.items():
            if _is_option(key) or key.startswith("+") or _has(own, key) or not self._known(key):
                kept.append((key, value))
            else:
                self.left_out.add(key)
        return tuple(kept)

    def _known(self, key: str) -> bool:
        choices = self.choices | self.choices_as_written if key in self.inherited else self.choices
        return any(_has(options, key) for options in choices)


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


# --------------------------------------------------------------------------------------------- one job each


def _job(overrides: Overrides, digest: str, varied: Sequence[str], factors: Sequence[str], ranks: int) -> Job:
    try:
        settings = _settings(overrides)
        env_steps, staleness = _predict(settings, ranks)
    except UserError as error:
        said = ", ".join(f"{key}={value}" for key, value in overrides if key_of(key) in varied)
        raise UserError(f"{error} (in the job {said})" if said else str(error)) from error
    given = {key_of(key): value for key, value in overrides}
    words = name_words(given, varied) or settings.experiment
    values = _factor_values(given, factors, settings)
    return Job(f"{words}-{digest}", digest, overrides, settings, env_steps, staleness, values)


def _factor_values(given: Mapping[str, str], factors: Sequence[str], settings: Config) -> dict[str, Any]:
    """Return the values of the factors: as given, else as the job's settings have them."""
    every = OmegaConf.create(config.to_dict(settings))
    values = {}
    for key in factors:
        if key in given:
            values[key] = meaning(key, given[key])
            continue
        value = OmegaConf.select(every, f"{key}.name" if _is_option(key) else key, default=MISSING)
        if value is not MISSING:
            values[key] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return values


def _settings(overrides: Overrides) -> Config:
    """Return what ``config.load`` gives for the same overrides, without composing anew for every job."""
    options = _options(overrides)
    values = _base(options).copy()
    for key, text in overrides:
        if _is_option(key):
            continue
        if not _has(options, key):  # added, or unknown: Hydra knows how, or what to say
            return config.load("train", [f"{key}={text}" for key, text in overrides])
        OmegaConf.update(values, key, meaning(key, text))
    return config.from_dict(values)


def _predict(settings: Config, ranks: int) -> tuple[int, StalenessPlan]:
    """Env steps of the run, and how old its data will be."""
    spec = environment_spec(settings)
    rollout, learner, replay = settings.rollout, settings.learner, settings.replay
    decisions = vector_steps(settings, spec, settings.policy.chunk, ranks)
    decisions *= ranks * rollout.workers * rollout.envs_per_worker
    iterations = min(settings.iterations, settings.stop_after or settings.iterations)
    staleness = staleness_plan(
        replay.capacity,
        decisions,
        learner.updates,
        learner.batch_segments * replay.segment_length,
        replay.max_lag,
    )
    return iterations * decisions * settings.policy.chunk * spec.action_repeat, staleness


# ---------------------------------------------------------------------------------------------------- names


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
    for key in varied:
        if key not in values:
            continue
        last = key.rpartition(".")[2]
        name = "" if key in NAMED_BY_VALUE else last if last_parts.count(last) == 1 else key
        words.append(re.sub(r"[^A-Za-z0-9.+_-]+", "_", f"{name}{values[key]}").strip("_"))
    return "-".join(words)[:LONGEST_WORDS].rstrip("-_.")
