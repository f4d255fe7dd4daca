"""What follows from a run's settings alone: sizes, staleness, memory. Nothing is started for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gipo_envs import EnvironmentSpec
from gipo_envs.errors import UserError
from gipo_vla.assembly import environment_spec, rollout_environment
from gipo_vla.config import Config
from gipo_vla.learner.micro_batches import rank_share
from gipo_vla.policies.base import Policy
from gipo_vla.replay.plan import MemoryPlan, StalenessPlan, memory_plan, staleness_plan
from gipo_vla.replay.segment import SegmentLayout, layout


def vector_steps(config: Config, spec: EnvironmentSpec, chunk: int, world: int) -> int:
    """Decisions of every environment in one iteration, S."""
    envs = world * config.rollout.workers * config.rollout.envs_per_worker
    return math.ceil(config.rollout.env_steps / (envs * chunk * spec.action_repeat))


@dataclass(frozen=True)
class Plans:
    """What follows from the settings alone, printed before anything is started."""

    spec: EnvironmentSpec
    layout: SegmentLayout
    steps: int
    staleness: StalenessPlan
    memory: MemoryPlan


def plan(config: Config, policy: Policy, spec: EnvironmentSpec, world: int) -> Plans:
    """Sizes, staleness and memory of a run.

    Raises:
        UserError: a segment is longer than an episode, the ranks do not divide a batch, or no batch could
            ever be drawn.
    """
    decisions = math.ceil(spec.actions_limit / policy.chunk)
    if "landmarks" in rollout_environment(config).observations:
        spec = environment_spec(replace(config, env=rollout_environment(config)))
    length = config.replay.segment_length
    if length > decisions:
        raise UserError(
            f"replay.segment_length is {length}, longer than an episode of {decisions} decisions "
            f"(env.step_limit {spec.step_limit} / action_repeat {spec.action_repeat} / chunk "
            f"{policy.chunk}): lower it to {decisions} or less"
        )
    segment = layout(
        spec,
        length,
        policy.chunk,
        policy.action_dims,
        policy.bins,
        store_logits=config.regularizers.kl_behaviour == "exact",
    )
    steps = vector_steps(config, spec, policy.chunk, world)
    new = steps * world * config.rollout.workers * config.rollout.envs_per_worker
    staleness = staleness_plan(
        config.replay.capacity,
        new,
        config.learner.updates,
        config.learner.batch_segments * length,
        config.replay.max_lag,
        segment_iterations=length / steps,
    )
    memory = memory_plan(
        segment, config.replay.capacity // world, int(config.replay.memory_limit_gb * 1e9), decisions
    )
    _check_drawable(config, memory, world)
    return Plans(spec, segment, steps, staleness, memory)


def _check_drawable(config: Config, memory: MemoryPlan, world: int) -> None:
    """Refuse limits under which a batch could never be drawn."""
    needed = rank_share(config.learner.batch_segments, world, "learner.batch_segments")
    slots = memory.worst // memory.per_segment
    if slots < needed:
        raise UserError(
            f"replay.memory_limit_gb is {config.replay.memory_limit_gb:g}: room for {slots} segments of "
            f"{memory.per_segment / 1e6:.3g} MB a rank, fewer than the {needed} of a batch; raise it or "
            "lower learner.batch_segments"
        )
    updates, max_lag = config.learner.updates, config.replay.max_lag
    if max_lag is not None and max_lag < updates - 1:
        # New data enters between iterations only: at the last update it is this old.
        raise UserError(
            f"replay.max_lag is {max_lag} updates, but in an iteration of {updates} (learner.updates) even "
            f"new data reaches {updates - 1}: raise it to that or more, or lower learner.updates"
        )
