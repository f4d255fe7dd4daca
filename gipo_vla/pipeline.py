"""The iteration: who waits for whom.

One iteration collects S vector steps (one decision in every environment each) and makes U updates of M
micro-batches. Vector step s is sent to the simulators before micro-batch floor(s * U * M / S), so they
simulate while the learner trains; what finishes enters the replay at the end of the iteration and can be
drawn from the next one on. With ``collect: all`` this order is fixed, and with it every number of a run.
On a CPU the vector steps of an update are made in a thread beside it: what they read, the behaviour policy
and the simulators, does not change before the update has ended, and what they write is not read before.
Saving, evaluating and logging happen between iterations and change nothing.

No ``if`` here that ranks could decide differently stands before a collective call.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from gipo_envs.errors import UserError
from gipo_vla.assembly import credit_context, policy_features, rollout_environment
from gipo_vla.credit.normalization import AdvantageNormalizer
from gipo_vla.distributed import group
from gipo_vla.imitation.demonstrations import Demonstrations
from gipo_vla.imitation.mix import DemonstrationMix
from gipo_vla.learner.demonstrated import DemonstratedShare
from gipo_vla.learner.learner import Learner
from gipo_vla.policies.base import Policy, copy_trainable
from gipo_vla.policies.normalization import moments
from gipo_vla.policies.numerical_floor import floor_metrics, log_ratio_floor
from gipo_vla.replay import samplers
from gipo_vla.replay.ring import SegmentRing
from gipo_vla.rollout.actor import Actor
from gipo_vla.rollout.collection import Collection
from gipo_vla.rollout.episodes import Role, TrainingEpisodes, generator, integer_seed
from gipo_vla.rollout.groups import EpisodeGroups, GroupAdvantages, GroupCounts
from gipo_vla.rollout.pool import WorkerPool
from gipo_vla.rollout.records import EpisodeRecord
from gipo_vla.rollout.task_sampler import TaskSampler
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.metrics import mean_of

RECENT_EPISODES = 100


def dispatch_schedule(steps: int, micro_batches: int) -> list[int]:
    """Vector steps to send before each micro-batch: step s goes before floor(s * M / S)."""
    counts = [0] * micro_batches
    for step in range(steps):
        counts[step * micro_batches // steps] += 1
    return counts


class Pipeline:
    """A whole actor-learner of one rank.

    Args:
        policy: to train, on ``device``.
        plans: the sizes of an iteration's experience, of ``run.plan``.
        demonstrations: to clone beside the objective.
    """

    def __init__(
        self,
        config: TrainingSettings,
        policy: Policy,
        plans: Collection,
        device: torch.device,
        demonstrations: Demonstrations | None = None,
    ) -> None:
        assert isinstance(policy, nn.Module)
        assert (policy.chunk, policy.action_dims) == (plans.layout.chunk, plans.layout.action_dims)
        self.config, self.plans, self.device = config, plans, device
        self.rank, self.world = group.rank(), group.world_size()
        self.iteration = 0
        """Iterations done."""
        self.recent: deque[EpisodeRecord] = deque(maxlen=RECENT_EPISODES)
        self.env_steps = 0
        """Env steps over all ranks, at the end of the last iteration."""
        self.updates_done: list[dict[str, float]] = []
        """Metrics of the updates of the iteration under way; its length is the cursor in the schedule."""
        self.numerical_floor: dict[str, float] | None = None
        """Of |log rho|: measured once a run, see ``policies.numerical_floor``."""
        rollout, spec = config.rollout, plans.spec
        envs = rollout.envs
        self.tasks = TaskSampler(spec.tasks, rollout.task_sampling, rollout.task_sampling_floor)
        self.episodes = TrainingEpisodes(
            spec, config.seed, envs * self.world, rollout.group_size, rollout.stagger, self.tasks
        )
        # The thread lives as long as the pool: Linux ends a worker with the thread that started it.
        self._acting = ThreadPoolExecutor(1, "actor", torch.set_num_threads, (config.learner.threads,))
        # Workers import their simulators while DeepSpeed is imported here.
        starting = self._acting.submit(
            WorkerPool,
            rollout_environment(config),
            spec,
            rollout.workers,
            rollout.envs_per_worker,
            policy.chunk,
            self.episodes.following,
            rollout.worker_timeout_s,
        )
        try:
            self._build(policy, demonstrations)
            self.pool = starting.result()
            act_generator = torch.Generator(device)
            act_generator.manual_seed(integer_seed(config.seed, Role.ACTION, self.rank))
            self.actor = Actor(
                self.behaviour,
                self.pool,
                self.episodes.first(range(self.rank * envs, (self.rank + 1) * envs)),
                plans.layout,
                rollout.temperature,
                act_generator,
                device,
                config.credit.uses_stored_values,
                self._groups(),
            )
        except BaseException:
            with suppress(Exception):  # that of the pool is the one being raised, or comes on top of another
                starting.result().close()
            self._acting.shutdown()
            raise

    def _build(self, policy: Policy, demonstrations: Demonstrations | None) -> None:
        """Make what learns, and the replay."""
        config, plans, device = self.config, self.plans, self.device
        spec = plans.spec
        self.policy: Policy = policy
        self.behaviour: Policy = policy.twin()
        reference = policy.twin() if config.regularizers.kl_reference_coefficient > 0 else None
        self.credit = config.credit.per_action(spec.action_repeat).build()
        self.credit.prepare(credit_context(config, spec, policy, device))
        # A GPU computes while the host acts, and a credit that compares episodes may look at the learner's
        # policy when a group closes.
        self.acts_beside = device.type == "cpu" and not self.credit.needs_groups
        """Whether acting and learning go on at the same time, each in a thread of its own."""
        self.learner = Learner(
            policy,
            replace(config.learner, micro_batch_segments=config.micro_batch_segments),
            config.objective,
            config.regularizers,
            self.credit,
            AdvantageNormalizer(
                config.credit.normalize,
                limit=config.credit.normalized_limit,
                shift=config.credit.shifts_advantages,
            ),
            device,
            config.iterations,
            spec.reward_scale,
            config.credit.uses_stored_values,
            reference,
            self.behaviour,
        )
        self.mix = (
            None
            if demonstrations is None
            else DemonstrationMix(demonstrations, policy.chunk, config.demonstrated, config.seed)
        )
        recent_first = samplers.recency(config.replay.recency_half_life)
        self.replay = SegmentRing(
            plans.layout,
            config.replay.capacity // self.world,
            int(config.replay.memory_limit_gb * 1e9),
            recent_first if config.replay.sampler == "recency" else samplers.uniform,
            config.replay.max_lag,
        )
        self.replay_rng = generator(config.seed, Role.REPLAY, self.rank)

    def _groups(self) -> EpisodeGroups:
        """Where closed segments wait, with a credit that compares episodes until their group is complete."""
        if not self.credit.needs_groups:
            return EpisodeGroups()
        features = policy_features(self.behaviour, self.device)
        hook = GroupAdvantages(self.credit, self.plans.spec.reward_scale, self.replay, features)
        rollout = self.config.rollout
        return EpisodeGroups(hook, rollout.group_size, rollout.group_filter == "contrast")

    def close(self) -> None:
        self.pool.close()
        self._acting.shutdown()

    # ------------------------------------------------------------------------------------------- iteration

    def run_iteration(
        self, should_stop: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, float | int | None], dict[str, float]] | None:
        """One iteration; returns its metrics (the same on every rank) and this rank's timings.

        Args:
            should_stop: asked after every update and every round of collection without updates (all ranks
                must answer alike). If true the iteration is left there and None returned; the next call,
                also after a checkpoint, completes it.
        """
        if self.numerical_floor is None:
            self.numerical_floor = self._measure_floor()
        began = time.perf_counter()
        steps_before = self.actor.env_steps
        self.actor.iteration = self.iteration + 1
        if not self._collect_until_drawable(should_stop):
            return None
        collected = time.perf_counter()
        while len(self.updates_done) < self.config.learner.updates:
            self.updates_done.append(self._update(len(self.updates_done)))
            if should_stop():
                self.actor.finish()
                return None
        if self.config.rollout.collect == "all":
            self.actor.finish()
        self._insert()
        trained = time.perf_counter()
        if not self._replace_left_out(should_stop):
            return None
        replaced = time.perf_counter()
        self.iteration += 1
        metrics = self._metrics(self.updates_done)
        self.updates_done = []
        self.credit.end_iteration(lambda own: group.sum_over_ranks(own.to(self.device)).cpu())
        ended = time.perf_counter()
        env_steps = self.world * (self.actor.env_steps - steps_before)
        timings = {
            "seconds": ended - began,
            "collect_only_seconds": collected - began + replaced - trained,
            "env_steps_per_second": env_steps / max(ended - began, 1e-9),
        }
        return metrics, timings

    def _measure_floor(self) -> dict[str, float]:
        """Of all ranks, on what their environments show now; changes nothing before the first update."""
        config = self.config
        self.synchronize()
        size = self.learner.micro_batch_sizes[0] * config.replay.segment_length
        observations = self.actor.present_observations()
        own = log_ratio_floor(self.behaviour, self.policy, observations, size, config.rollout.temperature)
        return floor_metrics(torch.cat(group.gather(own.cpu())))

    def _collect_until_drawable(self, should_stop: Callable[[], bool]) -> bool:
        """Collect without training until every rank may draw a batch for each update to come; False if asked
        to stop before."""
        needed = self.learner.segments_per_rank
        to_come = self.config.learner.updates - len(self.updates_done)
        for _ in range(self.config.rollout.max_collection_rounds):
            # The versions of these updates count, not today's: within an iteration nothing new can be drawn,
            # and a rank that ran dry under the lag limit in its middle would leave the others waiting.
            drawable = len(self.replay.drawable(self.learner.version + max(to_come - 1, 0)))
            if to_come == 0 or group.smallest(drawable, self.device) >= needed:
                if not self.updates_done:
                    # In the place of what these rounds left out, the next of them collected.
                    self.actor.groups.counts.replaced = self.actor.groups.counts.left_out
                return True
            self.collect(self.plans.steps)
            if should_stop():
                return False
        if self.actor.groups.only_contrast and not len(self.replay):
            raise UserError(
                f"after {self.config.rollout.max_collection_rounds} rounds of collection all outcomes were "
                "equal in every group, and rollout.group_filter=contrast left them out: begin with a policy "
                "that succeeds now and then (init_from), raise rollout.group_size, or set the filter to none"
            )
        raise UserError(
            f"after {self.config.rollout.max_collection_rounds} rounds of collection fewer than {needed} "
            f"segments a rank may be drawn: raise replay.max_lag ({self.config.replay.max_lag}) or "
            "rollout.env_steps, or lower learner.batch_segments or learner.updates"
        )

    def _replace_left_out(self, should_stop: Callable[[], bool]) -> bool:
        """Collect in the place of what the group filter left out of this iteration, which may be left out
        again, for a limited number of rounds; False if asked to stop before it is done.

        What counts is over all ranks, so that they make the same number of steps.
        """
        groups = self.actor.groups
        most = self.config.rollout.group_filter_rounds if groups.only_contrast else 0
        while groups.counts.rounds < most:
            counts = groups.counts
            missing = sum(group.gather(counts.left_out - counts.replaced))
            if missing <= 0:
                break
            steps = min(self.plans.steps, math.ceil(missing / (self.pool.envs * self.world)))
            self.collect(steps)
            counts.replaced += steps * self.pool.envs
            counts.rounds += 1
            if should_stop():
                return False
        return True

    def collect(self, steps: int) -> None:
        """Make ``steps`` vector steps and put what they closed into the replay, without training."""
        self._advance(steps)
        self.actor.finish()
        self._insert()

    def _advance(self, steps: int) -> None:
        """Send ``steps`` vector steps' worth of decisions to the simulators."""
        ready = self.config.rollout.collect == "ready"
        due = self.actor.decisions + steps * self.pool.envs
        while self.actor.decisions < due:
            self.actor.advance(ready)

    def _update(self, index: int) -> dict[str, float]:
        """Update number ``index`` of the iteration, with the vector steps that fall into it."""
        settings, micro_batches = self.config.learner, self.learner.micro_batches
        schedule = dispatch_schedule(self.plans.steps, settings.updates * micro_batches)
        steps = schedule[index * micro_batches : (index + 1) * micro_batches]
        # Nothing that these steps read changes before the copy of the weights at the end of the update.
        beside = [self._acting.submit(self._advance, sum(steps))] if self.acts_beside else []
        try:
            factor = self.learner.set_progress(self.iteration + index / settings.updates)
            segments = self.replay.sample(
                self.learner.segments_per_rank, self.replay_rng, self.learner.version
            )
            update = self.learner.begin(segments, self.iteration + 1, self._demonstrated())
            for micro_batch in range(micro_batches):
                if not beside:
                    self._advance(steps[micro_batch])
                self.learner.micro_step(update, micro_batch)
            row = self.learner.end(update) | {"learner/learning_rate_factor": factor}
        finally:
            wait(beside)
        for done in beside:
            done.result()
        if self.learner.attempted % self.config.rollout.sync_every == 0:
            self.synchronize()
        return row

    def _demonstrated(self) -> DemonstratedShare | None:
        """Demonstrations for the next update."""
        if self.mix is None:
            return None
        batch, coefficient = self.mix.at(self.learner.attempted), self.config.replay.demonstration_coefficient
        return DemonstratedShare(self.policy, batch, self.learner.micro_batches, coefficient, self.device)

    def synchronize(self) -> None:
        """Copy the learner's weights to the behaviour policy."""
        assert isinstance(self.policy, nn.Module) and isinstance(self.behaviour, nn.Module)
        copy_trainable(self.policy, self.behaviour)
        self.actor.version = self.learner.version

    def _insert(self) -> None:
        """Move closed segments into the replay, and their states into the normaliser while it learns."""
        segments = self.actor.take_segments()
        for segment in segments:
            self.replay.add(segment)
        normalizer = self.policy.normalizer
        if normalizer is None or self.iteration >= self.policy.normalizer_iterations:
            return
        empty = np.empty((0, len(normalizer.mean)), np.float32)
        states = [
            normalizer.rows({name: one.observations[name][: one.length] for name in normalizer.inputs})
            for one in segments
        ]
        count, total, squares = moments(torch.from_numpy(np.concatenate(states or [empty])))
        packed = group.sum_over_ranks(torch.cat([count[None], total, squares]).to(self.device))
        normalizer.update(packed[0], *packed[1:].split(len(total)))

    # --------------------------------------------------------------------------------------------- metrics

    def _metrics(self, updates: list[dict[str, float]]) -> dict[str, float | int | None]:
        gathered = group.gather(
            (
                self.actor.take_episodes(),
                self.actor.env_steps,
                self.replay.transitions,
                len(self.replay),
                self.pool.faults,
                self.actor.groups.dropped_segments,
                self.credit.take_sums(),
            )
        )
        episodes = [record for own, *_ in gathered for record in own]
        self.recent.extend(episodes)
        totals = [sum(column) for column in list(zip(*gathered))[1:-1]]
        credit = {name: sum(own[-1][name] for own in gathered) for name in gathered[0][-1]}
        self.env_steps = totals[0]
        row: dict[str, float | int | None] = {
            "iteration": self.iteration,
            "env_steps": totals[0],
            "updates": self.learner.version,
            "episodes": len(episodes),
            "success_once": _mean([record.success_once for record in episodes]),
            "success_at_end": _mean([record.success_at_end for record in episodes]),
            "success_once_recent": _mean([record.success_once for record in self.recent]),
            "episode_return": _mean([record.episode_return for record in episodes]),
            "episode_env_steps": _mean([record.env_steps for record in episodes]),
            "replay/transitions": totals[1],
            "replay/segments": totals[2],
            "rollout/worker_faults": totals[3],
            "rollout/dropped_segments": totals[4],
            "learner/skipped_total": self.learner.skipped,
        }
        self.tasks.observe((record.task, record.success_once) for record in episodes)
        row |= self.tasks.metrics() | self._group_metrics()
        row |= {f"staleness/numerical_floor_{k}": v for k, v in (self.numerical_floor or {}).items()}
        row |= self.credit.metrics(credit)
        merged = mean_of(updates)
        skipped = merged.pop("learner/skipped", 0.0)
        return row | {"learner/skipped": round(skipped * len(updates))} | merged

    def _group_metrics(self) -> dict[str, float | int | None]:
        """The groups that closed in the iteration; none where the credit compares no episodes."""
        if not self.credit.needs_groups:
            return {}
        groups = self.actor.groups
        own, groups.counts = groups.counts, GroupCounts()
        counts = group.gather(own)
        closed = sum(each.closed for each in counts)
        alike = sum(each.alike for each in counts)
        row: dict[str, float | int | None] = {
            "rollout/groups_without_contrast": alike / closed if closed else None
        }
        if groups.only_contrast:
            row["rollout/left_out_transitions"] = sum(each.left_out for each in counts)
            row["rollout/group_filter_rounds"] = own.rounds
        return row


def _mean(values: Sequence[float | bool]) -> float | None:
    return float(np.mean(values)) if len(values) else None
