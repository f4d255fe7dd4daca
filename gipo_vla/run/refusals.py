"""What no machine can manage, refused before anything is spent on it: beside memory (``run.memory``) the open
files, the threads, the lists that a run would keep, and numbers that nobody could wait for.

Settings may come out of a folder that somebody else made, so none of this is left to fail by itself.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from gipo_envs import EnvironmentSpec
from gipo_envs import registry as families
from gipo_envs.errors import UserError
from gipo_vla.policies.memory import Work
from gipo_vla.run.memory import Limits, dtype_of, gib, machine_limits
from gipo_vla.settings.runs import RunSettings
from gipo_vla.settings.schema import TrainingSettings

MOST_TO_COUNT = 10_000_000
"""Of anything that a plan or an episode goes through one by one."""
MOST_UPDATES = 100_000
"""Of an iteration."""
HANDLES, HANDLES_PER_WORKER = 100, 2
"""Open files of a training process, and those more for each worker: its socket, and one while it starts."""
BYTES_PER_SLOT = 56
"""Of a slot of the replay, beside the segment in it: its place in the order, its version."""


def too_many(settings: RunSettings, slots: int, limits: Limits) -> str | None:
    """What there is more of than a machine can manage, whatever it takes of memory; None: nothing.

    Args:
        slots: of the replay.
    """
    workers = settings.rollout.workers
    needed = HANDLES + HANDLES_PER_WORKER * workers
    if needed > limits.handles:
        return (
            f"rollout.workers is {workers:,}: a rank would have {needed:,} files open, and the limit is "
            f"{limits.handles:,} (ulimit -n): lower rollout.workers"
        )
    processes = limits.ranks * (workers + settings.learner.threads)
    if processes > limits.processes:
        return (
            f"{processes:,} processes and threads would run, and the limit is {limits.processes:,} "
            "(ulimit -u): lower rollout.workers or learner.threads"
        )
    if slots * BYTES_PER_SLOT * limits.ranks > limits.host:
        assert isinstance(settings, TrainingSettings)
        return (
            f"replay.capacity is {settings.replay.capacity:,} and replay.memory_limit_gb "
            f"{settings.replay.memory_limit_gb:g}: the list of {slots:,} segments alone does not fit into "
            f"{gib(limits.host)} of host memory; lower one of them"
        )
    return None


def refuse_to_play(settings: RunSettings, spec: EnvironmentSpec, device: torch.device) -> None:
    """Say no to a policy and simulators that cannot fit, before they are made to play or to be exported.
    Raises UserError: names what takes most."""
    envs, workers, limits = settings.rollout.envs, settings.rollout.workers, machine_limits(device)
    if spec.actions_limit > MOST_TO_COUNT:
        raise UserError(f"env.step_limit is {spec.step_limit:,}: lower it to {MOST_TO_COUNT:,} or less")
    if told := too_many(settings, 0, limits):
        raise UserError(told)
    policy = settings.policy.memory(
        Work(1, envs, dtype_of(settings, device), cuda=device.type != "cpu", twins=0), spec
    )
    seen = sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in spec.observation.values())
    items = {
        "policy": policy.frozen + policy.trainable + policy.workspace,
        f"rollout.workers ({workers:,})": workers * families.get(settings.env.family).worker_cost.bytes(spec),
        f"rollout.envs_per_worker ({settings.rollout.envs_per_worker:,})": envs
        * (2 * seen + 4 * spec.action_size * spec.actions_limit),
    }
    needed = sum(items.values()) - (items["policy"] if limits.device is not None else 0)
    if needed > limits.host or (limits.device is not None and items["policy"] > limits.device):
        most = max(items, key=lambda name: items[name])
        raise UserError(
            f"{gib(sum(items.values()))} would be needed and there are {gib(limits.host)}; {most} takes "
            f"{gib(items[most])} of it: {'lower its sizes' if most == 'policy' else 'lower it'}"
        )


def check_countable(key: str, value: int, count: int, what: str) -> None:
    """Raise a UserError if a setting makes more of something than can be gone through.

    Args:
        key, value: the setting.
        count: how many it makes of ``what``.
    """
    if count > MOST_TO_COUNT:
        raise UserError(f"{key} is {value:,}, which is {count:,} {what}: lower it")


def check_sizes(settings: RunSettings, spec: EnvironmentSpec) -> None:
    """Refuse numbers that nobody could wait for, before anything counts to them."""
    check_countable("env.step_limit", spec.step_limit, spec.actions_limit, "actions an episode")
    first, stop = spec.evaluation_keys
    sizes = {"eval.episodes_per_task": settings.eval.episodes_per_task}
    if isinstance(settings, TrainingSettings):
        if settings.eval.every_env_steps is not None:
            each = settings.eval.during_training_episodes_per_task
            sizes["eval.during_training_episodes_per_task"] = each
        for name, value in (
            ("learner.updates", settings.learner.updates),
            ("rollout.sync_every", settings.rollout.sync_every),
            ("rollout.max_collection_rounds", settings.rollout.max_collection_rounds),
        ):
            if value > MOST_UPDATES:
                raise UserError(f"{name} is {value:,}: at most {MOST_UPDATES:,} can be planned; lower it")
    for name, value in sizes.items():
        if value > stop - first:
            raise UserError(
                f"{name} is {value:,}: this environment has {stop - first:,} held-out initial states a task; "
                "lower it"
            )
