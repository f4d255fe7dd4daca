"""What an update costs on a card that is not there, counted operation by operation.

The learner of the run's settings makes an update of two micro-batches on ``fake_device``: every operation is
seen with its shapes and dtypes, none is computed. So the figures are exact, the same on every machine, and
need no GPU; CI keeps them from getting worse. A roofline turns them into time: an operation takes as long as
its arithmetic at the card's usual rate, as its bytes at the card's bandwidth, or as its launch, whichever is
longest. Real kernels are slower by 20 to 30 %, the host's own work and DeepSpeed's buckets are not counted,
and fused graphs of ``policy.compile`` are not either.

A *sample* is a transition that trains once. End to end adds the decision that made it, divided by how often
the settings use each transition.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gipo_envs.errors import UserError
from gipo_vla.benchmarks import Options, roofline
from gipo_vla.benchmarks.fake_device import Engine, HostWaits, fake_device
from gipo_vla.benchmarks.policy import Trial
from gipo_vla.benchmarks.roofline import CARDS, Card, Cost, Roofline
from gipo_vla.credit.normalization import AdvantageNormalizer
from gipo_vla.learner import engine as engines
from gipo_vla.learner import learner as learners
from gipo_vla.learner.learner import Learner
from gipo_vla.policies.base import network_dtype
from gipo_vla.policies.memory import CUDA_OVERHEAD, MOST_IN_A_BUCKET
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings
from gipo_vla.replay.segment import SegmentBatch, layout
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.console import console, figures_table

ACTION_SIZE = 7


@dataclass(frozen=True)
class Counted:
    """An update of two micro-batches, taken apart."""

    rows: int
    """Of a micro-batch."""
    bootstrap: Cost
    """Of what follows one segment in each row's segment, for all micro-batches together."""
    micro_batch: Cost
    """Forward, loss and backward."""
    optimizer: Cost
    act: Cost
    waits_per_micro_batch: int
    waits_per_update: int
    saved_bytes: int
    """Kept for the backward pass of a micro-batch."""
    peak_bytes: int
    """Of everything, with what DeepSpeed holds besides."""


def count(settings: TrainingSettings, card: Card, micro_batch_segments: int) -> Counted:
    """Count an update of two micro-batches of so many segments, and one decision of all environments."""
    policy_settings = settings.policy
    assert isinstance(policy_settings, OpenVlaOftSettings)
    length = settings.replay.segment_length
    learner_settings = replace(
        settings.learner,
        batch_segments=2 * micro_batch_segments,
        micro_batch_segments=micro_batch_segments,
        value_only_updates=0,
        policy_every=1,
    )
    rows = micro_batch_segments * length
    decisions = settings.rollout.workers * settings.rollout.envs_per_worker
    dtype = network_dtype(settings.learner.precision, torch.device("cuda"))

    def engine(policy: Any, optimizer: Any, settings: Any, device: Any, size: int, count: int) -> Engine:
        return Engine(policy, optimizer, count)

    with (
        mock.patch.object(engines, "build_engine", engine),
        # numpy's work, on numbers that are not there.
        mock.patch.object(learners, "staleness_metrics", lambda packed: {}),
        mock.patch.object(functional, "scaled_dot_product_attention", roofline.attention),
        mock.patch.object(functional, "rms_norm", roofline.rms_norm),
        fake_device() as device,
        Roofline(card) as counter,
        HostWaits() as waits,
    ):
        trial = Trial(policy_settings, device, decisions, rows, 1.0, ACTION_SIZE)
        policy = trial.build(dtype)
        policy.pads_prompts = True  # as with several tasks, whose instructions differ in length
        twin = policy.twin()
        reference = policy.twin() if settings.regularizers.kl_reference_coefficient > 0 else None
        learner = Learner(
            policy,
            learner_settings,
            settings.objective,
            settings.regularizers,
            settings.credit.build(),
            AdvantageNormalizer(
                settings.credit.normalize,
                limit=settings.credit.normalized_limit,
                shift=settings.credit.shifts_advantages,
            ),
            device,
            1,
            1.0,
            reference=reference,
            proximal=twin,
        )
        learner.normalizer.load_state_dict({"count": 1.0, "sum": 0.0, "sum_of_squares": 1.0})
        trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)

        def counted(call: Callable[..., Any], *arguments: Any) -> tuple[Any, Cost, int]:
            waits.places.clear()
            before = counter.cost()
            result = call(*arguments)
            return result, counter.cost().since(before), waits.count

        observations = trial.observations(decisions)
        _, act, _ = counted(twin.act, observations, settings.rollout.temperature)
        segments = _segments(trial, 2 * micro_batch_segments, length, policy_settings.chunk)
        counter.peak = counter.live
        update, bootstrap, begun = counted(learner.begin, segments, 1)
        saved = _Saved(held_by=[*policy.parameters(), *policy.buffers()])
        with torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda tensor: tensor):
            _, micro_batch, inside = counted(learner.micro_step, update, 0)
        _, whole, stepped = counted(learner.micro_step, update, 1)
        _, _, ended = counted(learner.end, update)
    masters, bucket = 4 * trained, 4 * min(trained, MOST_IN_A_BUCKET)
    return Counted(
        rows,
        bootstrap,
        micro_batch,
        whole.since(micro_batch),
        act,
        inside,
        begun + stepped + ended,
        saved.bytes,
        counter.peak + masters + bucket + CUDA_OVERHEAD,
    )


class _Saved:
    """Storages that autograd keeps, without those of the policy itself."""

    def __init__(self, held_by: list[Tensor]) -> None:
        self._known = {tensor.untyped_storage()._cdata for tensor in held_by}
        self._kept: dict[int, Any] = {}
        self.bytes = 0

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known and storage._cdata not in self._kept:
            self._kept[storage._cdata] = weakref.ref(storage)
            self.bytes += storage.nbytes()
        return tensor


def _segments(trial: Trial, count: int, length: int, chunk: int) -> SegmentBatch:
    """Whole segments within their episodes."""
    fields = layout(trial.spec, length, chunk, ACTION_SIZE, 256).fields
    made = {name: np.zeros((count, *field.shape), field.dtype) for name, field in fields.items()}
    made["length"][:], made["executed"][:], made["temperature"][:] = length, chunk, 1.0
    return SegmentBatch.from_arrays(made)


def run(settings: TrainingSettings, options: Options) -> dict[str, Any]:
    """Count an update of the run's settings and show it.

    Raises:
        UserError: the policy is no vision-language-action network.
    """
    if not isinstance(settings.policy, OpenVlaOftSettings):
        raise UserError(
            "benchmark cost counts vision-language-action networks: add "
            "experiment=libero_spatial_oft7b_1gpu, or policy=openvla_oft_tiny"
        )
    # Weights without numbers need no checkpoint.
    policy = replace(settings.policy, checkpoint=None, random_weights=True, unnorm_key=None, compile=False)
    settings = replace(settings, policy=policy)
    card = CARDS[options.card]
    size = settings.learner.micro_batch_segments
    counted = count(settings, card, size)
    other = count(settings, card, 2 * size)
    figures = summarize(settings, card, counted, other)
    _show(options.card, counted, figures)
    return figures


def summarize(settings: TrainingSettings, card: Card, counted: Counted, other: Counted) -> dict[str, Any]:
    """Figures of a sample, and the peak by size of the micro-batch from two sizes (it is linear)."""
    learner, rollout, rows = settings.learner, settings.rollout, counted.rows
    samples = learner.updates * learner.batch_segments * settings.replay.segment_length
    decisions = rollout.env_steps / settings.policy.chunk
    uses = samples / decisions
    per_update = learner.batch_segments * settings.replay.segment_length
    parts = {
        "forward, loss and backward": (counted.micro_batch, rows),
        "bootstrap": (counted.bootstrap, 2 * rows),
        "optimizer": (counted.optimizer, per_update),
    }
    in_learner = sum(cost.seconds / count for cost, count in parts.values())
    act = counted.act.seconds / (rollout.workers * rollout.envs_per_worker)
    by_row = (other.peak_bytes - counted.peak_bytes) / (other.rows - rows)
    fixed = counted.peak_bytes - rows * by_row
    return {
        "learner_ms_per_sample": round(1e3 * in_learner, 3),
        "end_to_end_ms_per_sample": round(1e3 * (in_learner + act / uses), 3),
        "host_waits_per_micro_batch": counted.waits_per_micro_batch,
        "host_waits_per_update": counted.waits_per_update,
        "teraflop_per_sample": round(sum(cost.flops / count for cost, count in parts.values()) / 1e12, 3),
        "saved_bytes_per_sample": counted.saved_bytes // rows,
        "largest_micro_batch": max(int((card.memory - fixed) // by_row), 0),
        "micro_batch": rows,
        "uses_of_a_transition": round(uses, 2),
        "act_ms_per_decision": round(1e3 * act, 3),
        "gigabytes_moved_per_sample": round(sum(c.bytes / n for c, n in parts.values()) / 1e9, 2),
        "kernels_per_micro_batch": counted.micro_batch.kernels,
        "forwards_per_sample": {
            "training": 1,
            "bootstrap": 1 / settings.replay.segment_length,
            "act": 1 / uses,
        },
        "parts_ms_per_sample": {name: round(1e3 * c.seconds / n, 3) for name, (c, n) in parts.items()},
        "kinds_ms_per_sample": {
            kind: round(1e3 * seconds / rows, 3)
            for kind, seconds in sorted(counted.micro_batch.by_kind.items(), key=lambda item: -item[1])
        },
        "peak_gib_by_micro_batch": {
            str(size): round((fixed + size * by_row) / 2**30, 1) for size in (8, 16, 32, 48, 64, 96)
        },
    }


def _show(card: str, counted: Counted, figures: dict[str, Any]) -> None:
    end_to_end = f"end to end, each transition used {figures['uses_of_a_transition']:g} times"
    times = {
        **figures["parts_ms_per_sample"],
        **{f"  of the first: {name}": own for name, own in figures["kinds_ms_per_sample"].items()},
        "learner": figures["learner_ms_per_sample"],
        end_to_end: figures["end_to_end_ms_per_sample"],
    }
    title = f"a trained sample on {card}, counted; {counted.rows} rows a micro-batch"
    figures_table(title, ["ms"], [(name, f"{own:.2f}") for name, own in times.items()])
    console.print(
        f"{figures['teraflop_per_sample']:.2f} TFLOP, {figures['gigabytes_moved_per_sample']:.1f} GB moved, "
        f"{figures['kernels_per_micro_batch']} kernels a micro-batch, "
        f"{figures['saved_bytes_per_sample'] / 2**30:.3f} GiB kept for the backward pass of a sample; host "
        f"waits: {counted.waits_per_micro_batch} a micro-batch, {counted.waits_per_update} an update; peak "
        f"in GiB by rows of a micro-batch {figures['peak_gib_by_micro_batch']}, at most "
        f"{figures['largest_micro_batch']} rows"
    )
