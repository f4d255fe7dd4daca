"""The plan of a run, from its settings alone: sizes, steps, expected lag, memory, env steps, duration.

``plan_run`` needs no policy, no worker and no weight: training, cloning, sweeps and benchmarks all call it
before anything is spent. What depends on the kind of policy is asked of the policy's settings
(``gipo_vla.policies.base.PolicySettings``), what depends on the simulator of its
``gipo_envs.family.WorkerCost``. At the end of a run ``compare`` puts what was measured beside each
prediction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.table import Table

from gipo_envs import EnvironmentSpec
from gipo_envs import registry as families
from gipo_envs.errors import UserError
from gipo_vla.assembly import environment_spec, rollout_environment
from gipo_vla.distributed import group
from gipo_vla.policies.base import PATCH_FEATURES
from gipo_vla.policies.memory import TokenShape
from gipo_vla.replay.segment import layout
from gipo_vla.rollout.collection import Collection
from gipo_vla.run.duration import Duration, estimate_duration
from gipo_vla.run.lag import Flow, Lag, expected_lag
from gipo_vla.run.memory import (
    Limits,
    RankMemory,
    ReplayMemory,
    dtype_of,
    in_one_unit,
    memory_table,
    plan_memory,
    plan_replay,
    problem,
)
from gipo_vla.run.refusals import check_countable, check_sizes, too_many
from gipo_vla.settings.cloning import SftSettings
from gipo_vla.settings.runs import RunSettings
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.console import in_words, table


@dataclass(frozen=True)
class Measured:
    """Figures at the end of a run; None where there is nothing to measure."""

    env_steps: int | None = None
    updates: int | None = None
    mean_lag_iterations: float | None = None
    """Of the iterations in which the replay was full."""
    mean_lag_updates: float | None = None
    process_bytes: int | None = None
    """Greatest resident set of a training process while it trained: the largest of the ranks."""
    worker_bytes: int | None = None
    """All simulator workers of a rank, without what they share: the largest of the ranks."""
    device_bytes: int | None = None
    """Peak allocated on the GPU: the largest of the ranks."""
    training_seconds: float | None = None


@dataclass(frozen=True)
class RunPlan:
    """What follows from the settings of a run."""

    settings: RunSettings
    world: int
    """Ranks."""
    tokens: TokenShape
    iterations: int
    updates: int
    """Of the whole run, at most."""
    env_steps: int
    """Of the whole run over all ranks, if no episode ends within a chunk; 0 for cloning."""
    memory: RankMemory
    duration: Duration
    collection: Collection | None = None
    """What an iteration collects; None for cloning, like the rest."""
    replay: ReplayMemory | None = None
    lag: Lag | None = None

    def refuse(self, limits: Limits) -> None:
        """Say no before anything is spent; a collective call. Raises UserError: on every rank, if any of them
        has too little memory; names the setting to lower."""
        problems = [text for text in group.gather(self.problem(limits)) if text is not None]
        if problems:
            raise UserError(problems[0])

    def problem(self, limits: Limits) -> str | None:
        """What does not fit into a machine, in one line; None if all does."""
        slots = self.replay.slots if self.replay else 0
        return too_many(self.settings, slots, limits) or problem(self.settings, self.memory, limits)

    def memory_table(self, limits: Limits) -> Table:
        """The memory of a rank beside what the machine has."""
        return memory_table(self.memory, limits)

    def rows(self) -> dict[str, str]:
        """Lines for the table at the start of a run: what is planned by name."""
        rows = {}
        if self.replay and self.lag and isinstance(self.settings, TrainingSettings):
            lag, show = self.lag, in_one_unit(self.replay.most)
            every = self.settings.learner.policy_every
            own = f", {lag.mean_updates / every:.0f} of the policy" if every > 1 else ""
            moved = f", {lag.samples_per_transition / every:.1f} by the policy" if every > 1 else ""
            rows["replay"] = (
                f"{self.settings.replay.capacity:,} transitions = {lag.iterations_held:.1f} iterations, "
                f"{show(self.replay.expected)} a rank (at most {show(self.replay.most)})"
            )
            rows["expected lag"] = (
                f"mean {lag.mean_iterations:.1f} iterations ({lag.mean_updates:.0f} updates{own}), "
                f"greatest {lag.greatest_iterations} ({lag.greatest_updates}); every transition is used "
                f"{lag.samples_per_transition:.1f} times{moved}"
            )
            rows["env steps"] = f"{self.env_steps:,} in {self.iterations:,} iterations"
        total = in_words(self.duration.total)
        return rows | {"estimated time": f"about {total}, each process on a core of its own"}

    def predicted(self) -> dict[str, float | int | None]:
        """The predictions that a run measures, by the names of ``Measured``."""
        on_gpu, policy = not self.memory.on_host, self.memory.policy
        return {
            "env_steps": self.env_steps if self.collection else None,
            "updates": self.updates,
            "mean_lag_iterations": self.lag.mean_iterations if self.lag else None,
            "mean_lag_updates": self.lag.mean_updates if self.lag else None,
            "process_bytes": self.memory.peak,
            "worker_bytes": self.memory.workers,
            # Neither CUDA's own libraries nor what the simulators draw with are in torch's count.
            "device_bytes": policy.total - policy.overhead if on_gpu else None,
            "training_seconds": round(self.duration.training, 1),
        }

    def record(self, measured: Measured) -> dict[str, Mapping[str, Any]]:
        """What finished.json keeps: every prediction, and what was measured."""
        return {"predicted": self.predicted(), "measured": asdict(measured)}

    def compare(self, measured: Measured) -> Table:
        """The table at the end of a run: every prediction beside what was measured."""
        rows = []
        show = in_one_unit(self.memory.peak)
        for name, planned in self.predicted().items():
            found = getattr(measured, name)
            if planned is None:
                continue
            words = show if name.endswith("bytes") else _number
            off = "" if not found or not planned else f"{found / planned - 1:+.1%}"
            label = LABELS.get(name, name.replace("_", " "))
            rows.append((label, words(planned), "-" if found is None else words(found), off))
        return table("planned and measured", ("", "planned", "measured", "difference"), rows)


CPU = torch.device("cpu")
LABELS = {
    "mean_lag_iterations": "mean lag (iterations)",
    "mean_lag_updates": "mean lag (updates)",
    "process_bytes": "training process",
    "worker_bytes": "workers",
    "device_bytes": "GPU memory",
    "training_seconds": "training (seconds)",
}
"""Names in the table at the end of a run, where a figure is not called by its own."""


def plan_run(settings: RunSettings, spec: EnvironmentSpec, world: int, device: torch.device | str) -> RunPlan:
    """The plan of a run on ``world`` ranks.

    Args:
        spec: of the environment, as ``environment_spec`` makes it.
        device: what kind of device the ranks have; nothing is asked of it.

    Raises:
        UserError: settings under which no batch could ever be drawn, or a segment that is longer than an
        episode.
    """
    device = torch.device(device)
    check_sizes(settings, spec)
    cost = families.get(settings.env.family).worker_cost
    tokens = settings.policy.token_shape(spec)
    if isinstance(settings, SftSettings):
        return RunPlan(
            settings,
            world,
            tokens,
            iterations=-(-settings.sft.steps // settings.sft.steps_per_iteration),
            updates=settings.sft.steps,
            env_steps=0,
            memory=plan_memory(settings, spec, world, device),
            duration=estimate_duration(settings, spec, world, device.type, cost, 0),
        )
    collection = plan_collection(settings, spec, world, device)
    decisions = math.ceil(spec.actions_limit / tokens.chunk)
    new = collection.steps * settings.rollout.envs
    first_rounds = _first_rounds(settings, decisions, collection.steps, world)
    replay = plan_replay(
        collection.layout,
        settings.replay.capacity // world,
        int(settings.replay.memory_limit_gb * 1e9),
        decisions,
        (settings.iterations + first_rounds) * new,
    )
    _check_drawable(settings, replay, world)
    check_countable("rollout.env_steps", settings.rollout.env_steps, collection.steps, "vector steps")
    held = int(replay.transitions / new)
    check_countable("replay.capacity", settings.replay.capacity, held, "iterations of experience")
    flow = Flow(
        decisions,
        settings.replay.segment_length,
        collection.steps,
        settings.rollout.envs,
        replay.transitions,
        settings.learner.updates,
        settings.learner.batch_segments // world,
        settings.rollout.sync_every,
        settings.replay.max_lag,
        settings.replay.recency_half_life if settings.replay.sampler == "recency" else None,
        whole_episodes=_whole_episodes(settings),
    )
    iterations = min(settings.iterations, settings.stop_after or settings.iterations)
    return RunPlan(
        settings,
        world,
        tokens,
        iterations=iterations,
        updates=iterations * settings.learner.updates,
        env_steps=(first_rounds + iterations) * new * world * tokens.chunk * spec.action_repeat,
        memory=plan_memory(settings, spec, world, device, replay),
        duration=estimate_duration(settings, spec, world, device.type, cost, collection.steps),
        collection=collection,
        replay=replay,
        lag=expected_lag(flow),
    )


def plan_collection(
    settings: TrainingSettings, spec: EnvironmentSpec, world: int, device: torch.device = CPU
) -> Collection:
    """The sizes of an iteration's experience. Raises UserError: a segment is longer than an episode, or
    features are to be kept of vision that trains."""
    tokens = settings.policy.token_shape(spec)
    decisions = math.ceil(spec.actions_limit / tokens.chunk)
    length = settings.replay.segment_length
    if length > decisions:
        raise UserError(
            f"replay.segment_length is {length}, longer than an episode of {decisions} decisions "
            f"(env.step_limit {spec.step_limit} / action_repeat {spec.action_repeat} / chunk "
            f"{tokens.chunk}): lower it to {decisions} or less"
        )
    if rollout_environment(settings) != settings.env:  # the credit looks at landmarks
        spec = environment_spec(replace(settings, env=rollout_environment(settings)))
    stored = spec
    if settings.replay.cache_features:
        features = settings.policy.patch_features(spec, dtype_of(settings, device))
        stored = replace(spec, observation={**spec.observation, PATCH_FEATURES: features})
    segment = layout(
        stored,
        length,
        tokens.chunk,
        tokens.action_dims,
        tokens.bins,
        store_logits=settings.regularizers.kl_behaviour == "exact",
    )
    envs = world * settings.rollout.envs
    steps = math.ceil(settings.rollout.env_steps / (envs * tokens.chunk * spec.action_repeat))
    return Collection(spec, segment, steps)


def _whole_episodes(settings: TrainingSettings) -> bool:
    """Whether segments wait for the end of their episode's group."""
    return settings.rollout.group_size > 1 and settings.credit.needs_groups


def _first_rounds(settings: TrainingSettings, decisions: int, steps: int, world: int) -> int:
    """Rounds of collection before the first update, until every rank may draw a batch."""
    envs = settings.rollout.envs
    needed, length = settings.learner.batch_segments // world, settings.replay.segment_length
    per_episode = math.ceil(decisions / length)
    for rounds in range(1, settings.rollout.max_collection_rounds):
        episodes, rest = divmod(rounds * steps, decisions)
        segments = episodes * per_episode + (0 if _whole_episodes(settings) else rest // length)
        if envs * segments >= needed:
            return rounds
    return settings.rollout.max_collection_rounds


def _check_drawable(settings: TrainingSettings, replay: ReplayMemory, world: int) -> None:
    """Refuse limits under which a batch could never be drawn."""
    needed = settings.learner.batch_segments // world
    if replay.slots < needed:
        raise UserError(
            f"replay.memory_limit_gb is {settings.replay.memory_limit_gb:g}: room for {replay.slots} "
            f"segments of {replay.per_segment / 1e6:.3g} MB a rank, fewer than the {needed} of a "
            "batch; raise it or lower learner.batch_segments"
        )
    updates, max_lag = settings.learner.updates, settings.replay.max_lag
    if max_lag is not None and max_lag < updates - 1:
        # New data enters between iterations only: at the last update it is this old.
        raise UserError(
            f"replay.max_lag is {max_lag} updates, but in an iteration of {updates} (learner.updates) even "
            f"new data reaches {updates - 1}: raise it to that or more, or lower learner.updates"
        )


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def mean_after(rows: Sequence[Mapping[str, Any]], name: str, iteration: int) -> float | None:
    """The mean of a metric over the iterations after ``iteration``; None where there are none."""
    values = [row[name] for row in rows if row["iteration"] > iteration and row.get(name) is not None]
    mean = float(np.mean(values)) if values else math.nan
    return mean if math.isfinite(mean) else None
