"""The network alone, without simulators: the numerical floor, the learner by size of its micro-batch, acting
by size of its batch; and the peak of memory of each beside its plan.

Weights are drawn once. Every size of the micro-batch trains a copy of what trains, with an engine of its own,
over the same frozen weights: what runs out of memory leaves nothing behind that the next could stumble over.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from gipo_envs.errors import UserError
from gipo_vla.benchmarks.policy import Trial
from gipo_vla.benchmarks.suite.job import Job
from gipo_vla.benchmarks.timing import device_name, rate, timed
from gipo_vla.credit.normalization import AdvantageNormalizer
from gipo_vla.distributed import group
from gipo_vla.distributed.determinism import deterministic
from gipo_vla.learner.learner import Learner
from gipo_vla.policies.base import Policy, copy_trainable, network_dtype
from gipo_vla.policies.memory import Work
from gipo_vla.policies.numerical_floor import floor_metrics, log_ratio_floor
from gipo_vla.policies.openvla_oft.memory import plan_memory, sample_of
from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings
from gipo_vla.replay.segment import SegmentBatch, layout
from gipo_vla.run.memory import dtype_of

MICRO_BATCHES = 4
"""An update: enough that the optimizer's step weighs no more than in a run."""
UPDATES_TIMED = 2
ACT_SECONDS = 1.0
FOR_ACTING_S = 25.0
"""Kept free at the end of the box."""


def measure(job: Job) -> None:
    """Measure all three, in order of value.

    Raises:
        UserError: the policy is no vision-language-action network.
    """
    settings = job.settings
    if not isinstance(settings.policy, OpenVlaOftSettings):
        raise UserError("the suite measures vision-language-action networks: leave policy= as it is")
    torch.set_num_threads(settings.learner.threads)
    device = group.choose_device(settings.learner.device)
    with deterministic(settings.learner.deterministic, device), group.joined(device):
        torch.manual_seed(settings.seed)
        rows = settings.learner.micro_batch_segments * settings.replay.segment_length
        trial = Trial(settings.policy, device, settings.rollout.envs, rows, settings.rollout.temperature, 7)
        policy, seconds = timed(
            lambda: trial.build(network_dtype(settings.learner.precision, device)), device
        )
        network = Network(job, trial, policy)
        if "floor" in job.parts:
            network.floor(seconds)
            job.close("floor")
        if "learner" in job.parts:
            network.learner_by_micro_batch()
            job.close("learner")
        if "act" in job.parts:
            network.act_by_batch()
            job.close("act")


class Network:
    """A policy whose own weights stay as they were drawn, and its twin that acts."""

    def __init__(self, job: Job, trial: Trial, policy: OpenVlaOftPolicy) -> None:
        self.job, self.trial, self.policy = job, trial, policy
        self.settings, self.device = job.settings, trial.device
        self.twin = policy.twin()

    def floor(self, seconds: float) -> None:
        """Of |log rho| between the twin and a learner that the engine has had in its hands."""
        with self._learner(self.settings.learner.micro_batch_segments) as learner:
            found = self._floor_of(learner.policy)
        figures = {
            "device": device_name(self.device),
            "dtype": dtype_of(self.settings, self.device),
            "act_batch": self.trial.act_batch,
            "micro_batch": self.trial.micro_batch,
            "build_seconds": round(seconds, 1),
            **found,
        }
        if self.device.type == "cuda":
            segments = torch.cuda.memory_snapshot()
            figures["expandable_segments"] = any(own.get("is_expandable") for own in segments)
        self.job.tell("floor", figures)

    def learner_by_micro_batch(self) -> None:
        """The size of the settings first, then half of it, then twice and more as long as memory and time
        last."""
        own, of_a_segment = self.settings.learner.micro_batch_segments, 0.0
        halves = [own // 2] if own > 1 else []
        for segments in (own, *halves, *(own * factor for factor in (2, 4, 8))):
            # Time grows with the rows at most.
            if of_a_segment and self.job.left - FOR_ACTING_S < segments * of_a_segment:
                break
            rows = segments * self.settings.replay.segment_length
            try:
                found, seconds = timed(partial(self._updates, segments), self.device)
                of_a_segment = seconds / segments
            except torch.OutOfMemoryError as error:
                self.job.tell("learner", {"rows": rows, "out_of_memory": str(error).splitlines()[0]}, rows)
                break
            self.job.tell("learner", {"rows": rows, **found}, rows)

    def act_by_batch(self) -> None:
        """Decisions a second of the twin for one environment, for those of a rank, and for more."""
        envs = self.trial.act_batch
        for batch in sorted({1, min(16, envs), envs, 2 * envs}):
            self._start_afresh()
            observations = self.trial.observations(batch)
            times = rate(partial(self.twin.act, observations, self.trial.temperature), ACT_SECONDS)
            found = {"batch": batch, "of_the_run": batch == envs, "decisions_per_second": batch * times}
            self.job.tell("act", {**found, **self._memory(Work(0, batch), twins=1)}, batch)

    def _updates(self, segments: int) -> dict[str, Any]:
        """Figures of a learner with micro-batches of so many segments, and of its floor after its updates."""
        self._start_afresh()
        rows = segments * self.settings.replay.segment_length
        batches = [self._made_up(MICRO_BATCHES * segments, seed) for seed in range(1 + UPDATES_TIMED)]
        with self._learner(segments) as learner:
            _update(learner, batches[0])  # allocates, and compiles where the settings say so
            seconds = sum(timed(partial(_update, learner, own), self.device)[1] for own in batches[1:])
            return {
                "samples_per_second": MICRO_BATCHES * rows * UPDATES_TIMED / seconds,
                "updates_skipped": learner.skipped,
                **self._memory(Work(rows, 0), twins=2),  # the twin, and the weights as they were drawn
                "floor_after_updates": self._floor_of(learner.policy),
            }

    @contextmanager
    def _learner(self, segments: int) -> Iterator[Learner]:
        """A learner of its own weights, as drawn, with micro-batches of so many segments."""
        settings = self.settings
        policy = self.policy.twin()
        for own, drawn in zip(policy.parameters(), self.policy.parameters(), strict=True):
            own.requires_grad_(drawn.requires_grad)
        learner = Learner(
            policy.train(),
            replace(
                settings.learner,
                batch_segments=MICRO_BATCHES * segments,
                micro_batch_segments=segments,
                value_only_updates=0,
                policy_every=1,
                warmup_iterations=0,
            ),
            settings.objective,
            settings.regularizers,
            settings.credit.build(),
            AdvantageNormalizer(settings.credit.normalize, shift=settings.credit.shifts_advantages),
            self.device,
            total_iterations=1,
            reward_scale=1.0,
            reference=self.policy if settings.regularizers.kl_reference_coefficient > 0 else None,
            proximal=self.twin,
        )
        try:
            yield learner
        finally:
            learner.engine.destroy()  # its hooks would hold it, and all of its tensors, for ever

    def _floor_of(self, policy: Policy) -> dict[str, float]:
        assert isinstance(policy, nn.Module)
        copy_trainable(policy, self.twin)
        seen = self.trial.observations(self.trial.act_batch)
        own = log_ratio_floor(self.twin, policy, seen, self.trial.micro_batch, self.trial.temperature)
        return floor_metrics(own)

    def _made_up(self, count: int, seed: int) -> SegmentBatch:
        """Whole segments of random pixels, on which a uniform policy has acted."""
        rng, policy = np.random.default_rng(seed), self.policy
        length = self.settings.replay.segment_length
        shape = layout(self.trial.spec, length, policy.chunk, policy.action_dims, policy.bins)
        made = shape.allocate(count)
        made.observations["images"][:] = rng.integers(0, 256, made.observations["images"].shape, np.uint8)
        made.tokens[:] = rng.integers(0, policy.bins, made.tokens.shape)
        made.log_probs[:] = -np.log(policy.bins)
        made.rewards[:] = rng.integers(0, 2, made.rewards.shape)
        made.length[:], made.executed[:], made.temperature[:] = length, policy.chunk, self.trial.temperature
        return made

    def _start_afresh(self) -> None:
        """Let go of the last learner, and count the peak of memory anew."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def _memory(self, work: Work, twins: int) -> dict[str, int | None]:
        """The allocator's peak beside the plan; None on a CPU, whose process holds more than a policy."""
        if self.device.type != "cuda":
            return {"device_bytes": None, "device_bytes_planned": None}
        dtype = dtype_of(self.settings, self.device)
        done = replace(work, dtype=dtype, cuda=True, twins=twins)
        assert isinstance(self.settings.policy, OpenVlaOftSettings)
        plan = plan_memory(self.settings.policy, done, sample_of(self.settings.policy, self.trial.spec))
        planned = plan.frozen + plan.trainable + plan.twin + plan.workspace
        if work.micro_batch:
            planned += plan.gradients + plan.optimizer + plan.activations
        return {
            "device_bytes": torch.cuda.max_memory_allocated(self.device),
            "device_bytes_planned": planned,
        }


def _update(learner: Learner, segments: SegmentBatch) -> None:
    update = learner.begin(segments, 1)
    for micro_batch in range(learner.micro_batches):
        learner.micro_step(update, micro_batch)
    learner.end(update)
