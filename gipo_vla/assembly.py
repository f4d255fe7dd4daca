"""From a run's settings, of whichever command, to its environment's spec and its policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gipo_envs import EnvironmentSettings, EnvironmentSpec, make_spec
from gipo_envs.errors import UserError
from gipo_vla.checkpoint.policy_files import find_checkpoint, load_policy, read_statistics
from gipo_vla.credit.base import CreditContext, ExpertChunks
from gipo_vla.imitation import demonstrations, origins
from gipo_vla.policies.base import BuildContext, HasFeatures, Policy
from gipo_vla.rollout.episodes import Role, integer_seed
from gipo_vla.rollout.groups import Features
from gipo_vla.settings import runs
from gipo_vla.settings.cloning import SftSettings
from gipo_vla.settings.runs import RunSettings, read_run
from gipo_vla.settings.schema import TrainingSettings

ROWS_AT_A_TIME = 128
"""Observations in one forward for their features."""


def build_policy(
    config: RunSettings,
    spec: EnvironmentSpec,
    device: torch.device,
    stored: Path | None = None,
    statistics: Mapping[str, Any] | None = None,
    reinforced: bool = False,
) -> Policy:
    """The configured policy, the same on every rank: with the weights of ``init_from``, else with initial
    weights that depend on the seed alone.

    Args:
        stored: the checkpoint whose weights the caller is about to load, or the folder of this run's
            checkpoints; then nothing is taken from ``init_from``, which may be gone by now.
        statistics: of the demonstrations that the policy is about to be cloned from.
        reinforced: its actions are to be sampled and reinforced; a checkpoint that cannot act so is refused.

    Raises:
        UserError: settings, environment and what ``init_from`` names do not go together.
    """
    origin = None
    if stored is None and config.init_from is not None:
        origin = find_checkpoint(Path(config.init_from), "init_from")
    source = stored or origin
    if statistics is None and source is not None:
        statistics = read_statistics(source)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(integer_seed(config.seed, Role.INITIALIZATION) % 2**63)
        cloning = config.init_from is not None or isinstance(config, SftSettings)
        policy: Policy = config.policy.build(
            BuildContext(spec, device, config.learner.precision, cloning, statistics, reinforced)
        )
    if origin is not None:
        origins.load(policy, origin, config)
    if config.init_from is not None:
        # Weights and input statistics were learned together: moving the latter would undo the former.
        policy.normalizer_iterations = 0
    return policy


def policy_at(
    settings: RunSettings, spec: EnvironmentSpec, device: torch.device, checkpoint: Path | None
) -> nn.Module:
    """A run's policy as a checkpoint has it; None: as the run starts."""
    policy = build_policy(settings, spec, device, stored=checkpoint)
    assert isinstance(policy, nn.Module)
    if checkpoint is not None:
        load_policy(policy, checkpoint)
    return policy


def named_run(checkpoint: str | None, overrides: Sequence[str]) -> tuple[RunSettings, Path | None]:
    """Settings and checkpoint that a command's arguments mean: those of a run, or what one would start from.

    Args:
        checkpoint: a run folder or one of its checkpoints.
        overrides: of that run's settings, or of a training run's.

    Raises:
        UserError: they name nothing with weights, or something damaged.
    """
    if checkpoint:
        path = find_checkpoint(Path(checkpoint))
        return runs.override(read_run(path / "config.yaml"), overrides), path
    settings = runs.load("train", overrides)
    if getattr(settings.policy, "checkpoint", None) is None and settings.init_from is None:
        raise UserError("checkpoint is missing: give checkpoint=RUN_DIR, or policy.checkpoint=PATH")
    return settings, None


def rollout_environment(config: TrainingSettings) -> EnvironmentSettings:
    """The environment as training's workers make it: with landmarks where the credit looks at them."""
    if not config.credit.needs_landmarks or "landmarks" in config.env.observations:
        return config.env
    return replace(config.env, observations=(*config.env.observations, "landmarks"))


def credit_context(
    config: TrainingSettings, spec: EnvironmentSpec, policy: Policy, device: torch.device
) -> CreditContext:
    """What the credit may know of the run."""
    read = partial(_expert_chunks, spec, policy.chunk)
    return CreditContext(spec, policy, device, config.seed, read)


def _expert_chunks(spec: EnvironmentSpec, chunk: int, folder: Path, match: str) -> ExpertChunks:
    """The demonstrated decisions in a folder that were followed by a whole chunk of actions."""
    if match not in spec.observation:
        return ExpertChunks({}, np.empty((0, chunk, spec.action_size), np.float32), np.empty(0, np.int64))
    matched = replace(spec, observation={match: spec.observation[match]})
    found = demonstrations.read(folder, matched)
    rows, tasks = [], []
    for task, record in zip(found.task_index, found.records):
        own = np.arange(record.first_row, record.first_row + record.rows)
        own = own[found.observed_at[own] + chunk <= record.first_action + record.actions]
        rows.append(own)
        tasks.append(np.full(len(own), task, np.int64))
    chosen, task_of = np.concatenate(rows), np.concatenate(tasks)
    if set(task_of.tolist()) != set(found.task_index):
        raise UserError(
            f"credit.scorer.demonstrations={folder}: some task has no demonstration of a whole chunk of "
            f"{chunk} actions; record longer ones, or lower policy.chunk"
        )
    seen = {match: found.observations[match][chosen]}
    actions = found.actions[found.observed_at[chosen][:, None] + np.arange(chunk)]
    return ExpertChunks(seen, actions, task_of)


def policy_features(policy: Policy, device: torch.device) -> Features:
    """A policy's features of stored observations, a few at a time."""

    def features(observations: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        assert isinstance(policy, HasFeatures)
        tensors = {name: torch.from_numpy(array) for name, array in observations.items()}
        count = len(next(iter(tensors.values())))
        parts = []
        for start in range(0, count, ROWS_AT_A_TIME):
            few = {name: own[start : start + ROWS_AT_A_TIME].to(device) for name, own in tensors.items()}
            parts.append(policy.features(few).cpu())
        return torch.cat(parts).numpy()

    return features


def environment_spec(config: RunSettings) -> EnvironmentSpec:
    """The environment's spec; errors name the section of the settings."""
    try:
        return make_spec(config.env)
    except UserError as error:
        raise UserError(f"env: {error}") from error
