"""The actor: observations to actions, and what comes back to segments.

It batches the forwards of the behaviour policy over all environments, hands the actions to the pool, and
writes what comes back into the open segment of each environment. A segment closes after L transitions or
with its episode, and then holds everything that training needs: log-probs and version of the policy that
acted, and the observation that follows. Closed segments go to ``groups.EpisodeGroups``, finished episodes to
``records.EpisodeRecords``, both until the pipeline takes them.

Shape suffixes: n environments that arrived, L segment length, K chunk, A action size, D action dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gipo_vla.policies.base import PATCH_FEATURES, Decision, HasFrozenVision, Observations, Policy
from gipo_vla.replay.segment import Arrays, Segment, SegmentBatch, SegmentLayout
from gipo_vla.rollout.episodes import EpisodePlan
from gipo_vla.rollout.groups import EpisodeGroups
from gipo_vla.rollout.pool import SimulatorState, WorkerPool
from gipo_vla.rollout.records import EpisodeRecord, EpisodeRecords


class Actor:
    """Collects experience with one behaviour policy.

    Args:
        policy: the behaviour twin; whoever copies weights into it also sets ``version``.
        pool: simulators, not yet begun.
        first_plans: the first episode of every environment.
        layout: the fields of a segment.
        temperature: divides the logits.
        generator: samples the tokens.
        device: where the policy lives.
        store_values: also value the observation that follows each segment, for credits that use stored
            values.
        groups: takes the closed segments; None: releases them as they close.
    """

    def __init__(
        self,
        policy: Policy,
        pool: WorkerPool,
        first_plans: Sequence[EpisodePlan],
        layout: SegmentLayout,
        temperature: float,
        generator: torch.Generator,
        device: torch.device,
        store_values: bool = False,
        groups: EpisodeGroups | None = None,
    ) -> None:
        self.policy, self.pool, self.layout = policy, pool, layout
        self.temperature, self.generator, self.device = temperature, generator, device
        self.store_values, self.groups = store_values, groups or EpisodeGroups()
        self.records = EpisodeRecords(pool.envs)
        self.version = 0
        """Learner version of the behaviour policy's weights."""
        self.iteration = 0
        self.env_steps = 0
        """Env steps executed so far by this rank."""
        self.decisions = 0
        self._open = layout.allocate(pool.envs)
        self._position = np.zeros(pool.envs, np.int64)
        """Transitions in each open segment."""
        self._start = np.zeros(pool.envs, np.int64)
        """Index within its episode of each open segment's first transition."""
        self._plans = list(first_plans)
        self._ready = np.arange(pool.envs)
        """Environments whose observation waits for a decision."""
        self._under_way = False
        pool.begin(first_plans)

    # -------------------------------------------------------------------------------------------- stepping

    def advance(self, ready: bool = False) -> None:
        """Take in what the last chunks led to, decide anew, and send the next chunks; does not wait for
        them.

        Args:
            ready: serve only the workers that are done (``collect: ready``).
        """
        if self._under_way:
            self._receive(ready)
        self._decide()

    def finish(self) -> None:
        """Wait for the chunks under way and take them in."""
        while self._under_way:
            self._receive(ready=False)

    def _observations(self, slots: NDArray[np.int64], prefix: str) -> Observations:
        """What these environments show, on the device, and what frozen vision makes of it if that is kept."""
        names = self.layout.observation_names
        observations = {
            name: torch.from_numpy(self.pool.arrays[f"{prefix}/{name}"][slots]).to(self.device)
            for name in names
            if name != PATCH_FEATURES
        }
        if PATCH_FEATURES in names:
            assert isinstance(self.policy, HasFrozenVision)
            observations[PATCH_FEATURES] = self.policy.patch_features(observations)
        return observations

    def present_observations(self) -> Observations:
        """What every environment shows now; nothing may be under way."""
        assert not self._under_way
        return self._observations(np.arange(self.pool.envs), "observation")

    def _decide(self) -> None:
        slots = self._ready
        if not len(slots):
            return
        observations = self._observations(slots, "observation")
        decision = self.policy.act(observations, self.temperature, self.generator)
        actions = self.policy.decode(decision.tokens)
        self._remember(slots, observations, decision)
        self.pool.dispatch(actions.cpu().numpy(), slots)
        self.decisions += len(slots)
        self._ready = np.empty(0, np.int64)
        self._under_way = True

    def _remember(self, slots: NDArray[np.int64], observations: Observations, decision: Decision) -> None:
        """Write the decision half of a transition: what was seen and chosen."""
        at, open_segments = (slots, self._position[slots]), self._open
        self._write_observations(at, observations, "observation")
        open_segments.tokens[at] = decision.tokens.cpu().numpy()
        open_segments.log_probs[at] = decision.log_probs.cpu().numpy()
        open_segments.values[at] = decision.values.cpu().numpy()
        open_segments.temperature[at] = self.temperature
        open_segments.version[at] = self.version
        open_segments.iteration[at] = self.iteration
        if open_segments.logits is not None:
            assert decision.logits is not None
            open_segments.logits[at] = decision.logits.cpu().numpy().astype(np.float16)

    def _receive(self, ready: bool) -> None:
        """Write the result half of the transitions that arrived; close segments and episodes."""
        arrival = self.pool.wait_ready() if ready else self.pool.wait()
        slots, arrays = arrival.slots, self.pool.arrays
        at = (slots, self._position[slots])
        rewards, executed, success = (arrays[name][slots] for name in ("rewards", "executed", "success"))
        self._open.rewards[at], self._open.executed[at], self._open.success[at] = rewards, executed, success
        self._position[slots] += 1
        terminated, truncated = arrays["terminated"][slots], arrays["truncated"][slots]
        done = terminated | truncated
        env_steps = executed * self.pool.spec.action_repeat
        self.env_steps += int(env_steps.sum())
        self.records.add(slots, rewards, success, env_steps)

        full = self._position[slots] == self.layout.length
        closing = slots[done | full]
        self._write_following(slots[full & ~done], slots[done])
        self._open.terminated[slots] = terminated
        self._open.truncated[slots] = truncated
        for slot in closing.tolist():
            self._close_segment(slot)
        for slot in slots[done].tolist():
            plan = self._plans[slot]
            self.records.end(slot, plan, bool(arrays["success_at_end"][slot]))
            self._begin_episode(slot)
            self.groups.end_episode(plan)
        for slot in arrival.lost.tolist():
            self.groups.lose_episode(self._plans[slot], int(self._position[slot] > 0))
            self._begin_episode(slot)
        self._ready = np.sort(np.concatenate([self._ready, slots, arrival.lost]))
        self._under_way = len(self._ready) < self.pool.envs

    def _write_following(self, continuing: NDArray[np.int64], ended: NDArray[np.int64]) -> None:
        """Write the observation after the last transition of every closing segment, and its value.

        Args:
            continuing: environments whose episode goes on.
            ended: those whose episode is over.
        """
        for slots, prefix in ((continuing, "observation"), (ended, "final")):
            if not len(slots):
                continue
            seen: Observations = {}
            if self.store_values or PATCH_FEATURES in self.layout.observation_names:
                seen = self._observations(slots, prefix)
            self._write_observations((slots, self._position[slots]), seen, prefix)
            if self.store_values:
                self._open.bootstrap_value[slots] = self.policy.value(seen).cpu().numpy()

    def _write_observations(
        self, at: tuple[NDArray[np.int64], NDArray[np.int64]], seen: Observations, prefix: str
    ) -> None:
        """Into the open segments, at (environments, positions); what was made of images is on the device."""
        for name, array in self._open.observations.items():
            made = name == PATCH_FEATURES
            array[at] = seen[name].cpu().numpy() if made else self.pool.arrays[f"{prefix}/{name}"][at[0]]

    def _close_segment(self, slot: int) -> None:
        plan, length = self._plans[slot], int(self._position[slot])
        # Without the rows of an earlier, longer one.
        own = self._open.segment(slot).copy(
            length,
            start=int(self._start[slot]),
            task=plan.task,
            env=plan.env,
            episode=plan.episode,
            group=plan.group,
        )
        self.groups.add(own)
        self._start[slot] += length
        self._position[slot] = 0

    def _begin_episode(self, slot: int) -> None:
        self._plans[slot] = self.pool.plans[slot]
        self._position[slot] = self._start[slot] = 0
        self.records.begin(slot)

    def take_segments(self) -> list[Segment]:
        """Segments released since the last call, in an order that does not depend on the workers' speed."""
        return self.groups.take()

    def take_episodes(self) -> list[EpisodeRecord]:
        """Episodes ended since the last call, in environment order."""
        return self.records.take()

    # ------------------------------------------------------------------------------------------- run state

    def begin_episode_number(self, episode: int) -> None:
        """Drop what is open and begin this episode number in every environment.

        For a run that is resumed with another number of environments: earlier numbers were played already.
        """
        assert not self._under_way
        self.groups.clear()
        self.records = EpisodeRecords(self.pool.envs)
        self.pool.begin([self.pool.next_plan(replace(plan, episode=episode - 1)) for plan in self._plans])
        for slot in range(self.pool.envs):
            self._begin_episode(slot)
        self._ready = np.arange(self.pool.envs)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Everything needed to resume elsewhere, as arrays and plain values; nothing may be under way."""
        assert not self._under_way
        simulators = self.pool.snapshot()
        sums, episodes = self.records.state()
        batches, groups = self.groups.state(self.layout)
        arrays: Arrays = sums | {
            "position": self._position,
            "start": self._start,
            "generator": self.generator.get_state().numpy(),
            "action_counts": np.array([len(simulator.actions) for simulator in simulators]),
            "actions": np.concatenate([simulator.actions for simulator in simulators]),
        }
        for prefix, batch in ({"open": self._open} | batches).items():
            arrays |= {f"{prefix}/{name}": array for name, array in batch.arrays().items()}
        values = groups | {
            "version": self.version,
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "decisions": self.decisions,
            "faults": self.pool.faults,
            "plans": [asdict(simulator.plan) for simulator in simulators],
            "following": [asdict(simulator.following) for simulator in simulators],
            "episodes": episodes,
        }
        return arrays, values

    def load_state(self, arrays: Arrays, values: dict[str, Any]) -> None:
        """Take back what ``state`` returned; restores the simulators by replaying their actions."""
        batches = {
            prefix: SegmentBatch.from_arrays(
                {name: arrays[f"{prefix}/{name}"] for name in self.layout.fields}
            )
            for prefix in ("open", "closed", "waiting")
        }
        for slot, segment in enumerate(batches.pop("open")):
            self._open.put(slot, segment)
        self.groups.load_state(batches, values)
        self.records.load_state(arrays, values["episodes"])
        self._position[:], self._start[:] = arrays["position"], arrays["start"]
        self.generator.set_state(torch.from_numpy(arrays["generator"]))
        for name in ("version", "iteration", "env_steps", "decisions"):
            setattr(self, name, values[name])
        self.pool.faults = values["faults"]
        self._plans = [EpisodePlan(**plan) for plan in values["plans"]]
        ends = np.cumsum(arrays["action_counts"])
        actions = np.split(arrays["actions"], ends[:-1])
        self.pool.restore(
            [
                SimulatorState(plan, own, EpisodePlan(**following))
                for plan, own, following in zip(self._plans, actions, values["following"], strict=True)
            ]
        )
        self._ready = np.arange(self.pool.envs)
        self._under_way = False
