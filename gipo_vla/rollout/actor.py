"""The actor: observations to actions, episodes to segments.

It batches the forwards of the behaviour policy over all environments, hands the actions to the pool, and
writes what comes back into the open segment of each environment. A segment closes after L transitions or
with its episode, and then holds everything that training needs: log-probs and version of the policy that
acted, and the observation that follows.

Closed segments wait here until the pipeline takes them (in environment order, so that a run does not depend
on which worker was faster); with a credit that works on groups they wait until their group is complete and
carry its advantages.

Shape suffixes: n environments that arrived, L segment length, K chunk, A action size, D action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gipo_vla.policies.base import Decision, Observations, Policy
from gipo_vla.replay.segment import OBSERVATION_PREFIX, Arrays, SegmentLayout, iterate
from gipo_vla.rollout.episodes import EpisodePlan
from gipo_vla.rollout.pool import SimulatorState, WorkerPool

GroupHook = Callable[[Sequence[list[Arrays]]], None]
"""Gets the episodes of a complete group, each as its segments in order, and writes their advantages."""


@dataclass(frozen=True)
class EpisodeRecord:
    """A finished episode, for metrics; rewards are unscaled."""

    env: int
    episode: int
    task: int
    episode_return: float
    env_steps: int
    success_once: bool
    success_at_end: bool


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
        store_values: also value the observation that follows each segment, for credits that use the values
            of the day of acting.
        on_group: see ``GroupHook``; None: segments are released as they close.
        group_size: episodes a group.
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
        on_group: GroupHook | None = None,
        group_size: int = 1,
    ) -> None:
        self.policy, self.pool, self.layout = policy, pool, layout
        self.temperature, self.generator, self.device = temperature, generator, device
        self.store_values, self.on_group, self.group_size = store_values, on_group, group_size
        self.version = 0
        """Learner version of the behaviour policy's weights."""
        self.iteration = 0
        self.env_steps = 0
        """Env steps executed so far by this rank."""
        self.decisions = 0
        self.dropped_segments = 0
        """Segments lost with a failed worker, with those of the groups it spoilt."""
        self._open = layout.allocate(pool.envs)
        self._position = np.zeros(pool.envs, np.int64)
        """Transitions in each open segment."""
        self._start = np.zeros(pool.envs, np.int64)
        """Index within its episode of each open segment's first transition."""
        self._return = np.zeros(pool.envs)
        self._steps = np.zeros(pool.envs, np.int64)
        self._success = np.zeros(pool.envs, np.bool_)
        self._plans = list(first_plans)
        self._closed: list[Arrays] = []
        self._episodes: list[EpisodeRecord] = []
        self._groups: dict[int, dict[int, list[Arrays]]] = {}
        """Closed segments of unfinished groups, by group and environment."""
        self._finished_members: dict[int, set[int]] = {}
        self._lost_groups: set[int] = set()
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
        return {
            name: torch.from_numpy(self.pool.arrays[f"{prefix}/{name}"][slots]).to(self.device)
            for name in self.layout.observation_names
        }

    def present_observations(self) -> Observations:
        """What every environment shows now; nothing may be under way."""
        assert not self._under_way
        return self._observations(np.arange(self.pool.envs), "observation")

    def _decide(self) -> None:
        slots = self._ready
        if not len(slots):
            return
        decision = self.policy.act(self._observations(slots, "observation"), self.temperature, self.generator)
        actions = self.policy.decode(decision.tokens)
        self._remember(slots, decision)
        self.pool.dispatch(actions.cpu().numpy(), slots)
        self.decisions += len(slots)
        self._ready = np.empty(0, np.int64)
        self._under_way = True

    def _remember(self, slots: NDArray[np.int64], decision: Decision) -> None:
        """Write the decision half of a transition: what was seen and chosen."""
        at = (slots, self._position[slots])
        for name in self.layout.observation_names:
            self._open[OBSERVATION_PREFIX + name][at] = self.pool.arrays[f"observation/{name}"][slots]
        self._open["tokens"][at] = decision.tokens.cpu().numpy()
        self._open["log_probs"][at] = decision.log_probs.cpu().numpy()
        self._open["values"][at] = decision.values.cpu().numpy()
        self._open["temperature"][at] = self.temperature
        self._open["version"][at] = self.version
        self._open["iteration"][at] = self.iteration
        if "logits" in self._open:
            assert decision.logits is not None
            self._open["logits"][at] = decision.logits.cpu().numpy().astype(np.float16)

    def _receive(self, ready: bool) -> None:
        """Write the result half of the transitions that arrived; close segments and episodes."""
        arrival = self.pool.wait_ready() if ready else self.pool.wait()
        slots, arrays = arrival.slots, self.pool.arrays
        at = (slots, self._position[slots])
        for name in ("rewards", "executed", "success"):
            self._open[name][at] = arrays[name][slots]
        self._position[slots] += 1
        terminated, truncated = arrays["terminated"][slots], arrays["truncated"][slots]
        done = terminated | truncated
        env_steps = arrays["executed"][slots] * self.pool.spec.action_repeat
        self.env_steps += int(env_steps.sum())
        self._steps[slots] += env_steps
        self._return[slots] += arrays["rewards"][slots].sum(-1)
        self._success[slots] |= arrays["success"][slots].any(-1)

        closing = slots[done | (self._position[slots] == self.layout.length)]
        self._write_following(closing, slots[done])
        self._open["terminated"][slots] = terminated
        self._open["truncated"][slots] = truncated
        for slot in closing.tolist():
            self._close_segment(slot)
        for slot in slots[done].tolist():
            self._close_episode(slot)
        for slot in arrival.lost.tolist():
            self._drop(slot)
        self._ready = np.sort(np.concatenate([self._ready, slots, arrival.lost]))
        self._under_way = len(self._ready) < self.pool.envs

    def _write_following(self, closing: NDArray[np.int64], ended: NDArray[np.int64]) -> None:
        """Write the observation after the last transition of every closing segment, and its value."""
        going_on = np.setdiff1d(closing, ended, assume_unique=True)
        for slots, prefix in ((going_on, "observation"), (ended, "final")):
            if not len(slots):
                continue
            for name in self.layout.observation_names:
                self._open[OBSERVATION_PREFIX + name][slots, self._position[slots]] = self.pool.arrays[
                    f"{prefix}/{name}"
                ][slots]
            if self.store_values:
                values = self.policy.value(self._observations(slots, prefix))
                self._open["bootstrap_value"][slots] = values.cpu().numpy()

    # ------------------------------------------------------------------------------------ segments, episodes

    def _close_segment(self, slot: int) -> None:
        plan, length = self._plans[slot], int(self._position[slot])
        segment = {name: array[slot].copy() for name, array in self._open.items()}
        for name, array in segment.items():
            if array.ndim and name != "length":  # rows of an earlier, longer segment
                array[length + (1 if name.startswith(OBSERVATION_PREFIX) else 0) :] = 0
        segment["length"] = np.int32(length)
        segment["start"] = np.int32(self._start[slot])
        for name, value in (
            ("task", plan.task),
            ("env", plan.env),
            ("episode", plan.episode),
            ("group", plan.group),
        ):
            segment[name] = np.asarray(value, self.layout.fields[name].dtype)
        self._start[slot] += length
        self._position[slot] = 0
        if self.on_group is None or plan.group < 0:
            self._closed.append(segment)
        elif plan.group in self._lost_groups:
            self.dropped_segments += 1
        else:
            self._groups.setdefault(plan.group, {}).setdefault(plan.env, []).append(segment)

    def _close_episode(self, slot: int) -> None:
        plan = self._plans[slot]
        self._episodes.append(
            EpisodeRecord(
                env=plan.env,
                episode=plan.episode,
                task=plan.task,
                episode_return=float(self._return[slot]),
                env_steps=int(self._steps[slot]),
                success_once=bool(self._success[slot]),
                success_at_end=bool(self.pool.arrays["success_at_end"][slot]),
            )
        )
        self._begin_episode(slot)
        if self.on_group is not None and plan.group in self._groups:
            members = self._finished_members.setdefault(plan.group, set())
            members.add(plan.env)
            if len(members) == self.group_size:
                self._close_group(plan.group)

    def _close_group(self, group: int) -> None:
        assert self.on_group is not None
        episodes = self._groups.pop(group)
        del self._finished_members[group]
        ordered = [episodes[env] for env in sorted(episodes)]
        self.on_group(ordered)
        self._closed += [segment for episode in ordered for segment in episode]

    def _begin_episode(self, slot: int) -> None:
        self._plans[slot] = self.pool.plans[slot]
        self._position[slot] = self._start[slot] = self._steps[slot] = 0
        self._return[slot], self._success[slot] = 0.0, False

    def _drop(self, slot: int) -> None:
        """Forget the unfinished segment of a simulator that was lost, and the group it belonged to."""
        self.dropped_segments += int(self._position[slot] > 0)
        group = self._plans[slot].group
        if group >= 0:
            self._lost_groups.add(group)
            self.dropped_segments += sum(len(own) for own in self._groups.pop(group, {}).values())
            self._finished_members.pop(group, None)
        self._begin_episode(slot)

    # ------------------------------------------------------------------------------------------- handing over

    def take_segments(self) -> list[Arrays]:
        """Segments closed since the last call, in environment order (groups stay together)."""
        closed, self._closed = self._closed, []
        if self.on_group is None:
            closed.sort(
                key=lambda segment: (int(segment["env"]), int(segment["episode"]), int(segment["start"]))
            )
        else:
            closed.sort(key=lambda segment: int(segment["group"]))
        return closed

    def take_episodes(self) -> list[EpisodeRecord]:
        """Episodes finished since the last call, in environment order."""
        episodes, self._episodes = self._episodes, []
        return sorted(episodes, key=lambda record: (record.env, record.episode))

    # ------------------------------------------------------------------------------------------- run state

    def begin_episode_number(self, episode: int) -> None:
        """Drop what is open and begin this episode number in every environment.

        For a run that goes on with another number of environments: earlier numbers were played already.
        """
        assert not self._under_way
        self._closed, self._episodes = [], []
        self._groups, self._finished_members, self._lost_groups = {}, {}, set()
        self.pool.begin([self.pool.next_plan(replace(plan, episode=episode - 1)) for plan in self._plans])
        for slot in range(self.pool.envs):
            self._begin_episode(slot)
        self._ready = np.arange(self.pool.envs)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Everything needed to go on elsewhere, as arrays and plain values; nothing may be under way."""
        assert not self._under_way
        simulators = self.pool.snapshot()
        waiting = [segment for group in self._groups.values() for own in group.values() for segment in own]
        arrays: Arrays = {
            "position": self._position,
            "start": self._start,
            "return": self._return,
            "steps": self._steps,
            "success": self._success,
            "generator": self.generator.get_state().numpy(),
            "action_counts": np.array([len(simulator.actions) for simulator in simulators]),
            "actions": np.concatenate([simulator.actions for simulator in simulators]),
        }
        arrays |= {f"open/{name}": array for name, array in self._open.items()}
        arrays |= {f"closed/{name}": array for name, array in self._stack(self._closed).items()}
        arrays |= {f"waiting/{name}": array for name, array in self._stack(waiting).items()}
        values = {
            "version": self.version,
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "decisions": self.decisions,
            "dropped_segments": self.dropped_segments,
            "faults": self.pool.faults,
            "plans": [asdict(simulator.plan) for simulator in simulators],
            "following": [asdict(simulator.following) for simulator in simulators],
            "episodes": [asdict(record) for record in self._episodes],
            "finished_members": [[group, sorted(envs)] for group, envs in self._finished_members.items()],
            "lost_groups": sorted(self._lost_groups),
        }
        return arrays, values

    def load_state(self, arrays: Arrays, values: dict[str, Any]) -> None:
        """Take back what ``state`` returned; restores the simulators by replaying their actions."""
        for name, own in (
            ("position", self._position),
            ("start", self._start),
            ("return", self._return),
            ("steps", self._steps),
            ("success", self._success),
        ):
            own[:] = arrays[name]
        for name, own in self._open.items():
            own[:] = arrays[f"open/{name}"]
        self.generator.set_state(torch.from_numpy(arrays["generator"]))
        self._closed = self._unstack("closed", arrays)
        self._groups.clear()
        for segment in self._unstack("waiting", arrays):
            group = self._groups.setdefault(int(segment["group"]), {})
            group.setdefault(int(segment["env"]), []).append(segment)
        for name in ("version", "iteration", "env_steps", "decisions", "dropped_segments"):
            setattr(self, name, values[name])
        self.pool.faults = values["faults"]
        self._episodes = [EpisodeRecord(**record) for record in values["episodes"]]
        self._finished_members = {group: set(envs) for group, envs in values["finished_members"]}
        self._lost_groups = set(values["lost_groups"])
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

    def _stack(self, segments: Sequence[Arrays]) -> Arrays:
        return {
            name: np.stack([segment[name] for segment in segments])
            if segments
            else np.zeros((0, *field.shape), field.dtype)
            for name, field in self.layout.fields.items()
        }

    def _unstack(self, prefix: str, arrays: Arrays) -> list[Arrays]:
        stacked = {name: arrays[f"{prefix}/{name}"] for name in self.layout.fields}
        return [{name: array.copy() for name, array in segment.items()} for segment in iterate(stacked)]
