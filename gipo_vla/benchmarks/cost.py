"""What an update costs on a card that is not there, counted operation by operation.

The learner of the run's settings makes an update of two micro-batches on ``fake_device``: every operation is
seen with its shapes and dtypes, none is computed. So the figures are exact, the same on every machine, and
need no GPU; CI keeps them from getting worse. A roofline turns them into time: an operation takes as long as
its arithmetic at the card's usual rate, as its bytes at the card's bandwidth, or as its launch, whichever is
longest. Real kernels are slower by 20 to 30 %, the host's own work and DeepSpeed's buckets are not counted.
What is counted is what runs without ``policy.compile``; with it, a table shows what a block of the Llama is
fused to (``benchmarks.fused``).

A *sample* is a transition that trains once. End to end adds the decision that made it, divided by how often
the settings use each transition.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gipo_envs import ArraySpec
from gipo_envs.errors import UserError
from gipo_vla.benchmarks import Options, roofline
from gipo_vla.benchmarks.fake_device import Engine, HostWaits, fake_device
from gipo_vla.benchmarks.fused import count_block
from gipo_vla.benchmarks.policy import Trial
from gipo_vla.benchmarks.roofline import CARDS, Card, Cost, Roofline
from gipo_vla.credit.normalization import AdvantageNormalizer
from gipo_vla.learner import engine as engines
from gipo_vla.learner import learner as learners
from gipo_vla.learner.learner import Learner
from gipo_vla.policies.base import PATCH_FEATURES, network_dtype
from gipo_vla.policies.memory import CUDA_OVERHEAD, MOST_IN_A_BUCKET
from gipo_vla.policies.openvla_oft import llama
from gipo_vla.policies.openvla_oft.memory import Sample as TokensOf
from gipo_vla.policies.openvla_oft.memory import tokens_per_sample
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings
from gipo_vla.replay.segment import SegmentBatch, layout
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.console import console, figures_table

ACTION_SIZE = 7
GIB = 2**30
PEAKS = (8, 16, 32, 48, 64, 96)
"""Rows for which the peak is shown."""


@dataclass(frozen=True)
class Counted:
    """An update of two micro-batches, taken apart."""

    rows: int
    """Of a micro-batch."""
    bootstrap: Cost
    """Of what follows one segment in each row's segment, for all micro-batches together."""
    forward: Cost
    """Forward and loss of a micro-batch, and the sums that describe it."""
    backward: Cost
    optimizer: Cost
    act: Cost
    waits_per_micro_batch: int
    waits_per_update: int
    saved_bytes: int
    """Kept for the backward pass of a micro-batch."""
    peak_bytes: int
    """Of everything, with what DeepSpeed holds besides."""
    prompt_tokens: int


def count(
    settings: TrainingSettings, card: Card, micro_batch_segments: int, value_only: bool = False
) -> Counted:
    """Count an update of two micro-batches of so many segments, and one decision of all environments.

    Args:
        value_only: the update trains the value alone.
    """
    policy_settings = settings.policy
    assert isinstance(policy_settings, OpenVlaOftSettings)
    length = settings.replay.segment_length
    learner_settings = replace(
        settings.learner,
        batch_segments=2 * micro_batch_segments,
        micro_batch_segments=micro_batch_segments,
        micro_batch_rows=None,
        value_only_updates=int(value_only),
        policy_every=1,
    )
    rows = micro_batch_segments * length
    decisions = settings.rollout.workers * settings.rollout.envs_per_worker
    dtype = network_dtype(settings.learner.precision, torch.device("cuda"))

    marks: list[Cost] = []

    class Marking(Engine):
        """Notes what was done before and after each backward pass."""

        def backward(self, loss: Tensor) -> None:
            marks.append(counter.cost())
            super().backward(loss)
            marks.append(counter.cost())

    def engine(policy: Any, optimizer: Any, settings: Any, device: Any, size: int, count: int) -> Engine:
        return Marking(policy, optimizer, count)

    with (
        mock.patch.object(engines, "build_engine", engine),
        # numpy's work, on numbers that are not there.
        mock.patch.object(learners, "staleness_metrics", lambda packed: {}),
        mock.patch.object(functional, "scaled_dot_product_attention", roofline.attention),
        mock.patch.object(functional, "rms_norm", roofline.rms_norm),
        mock.patch.object(llama, "silu_backward", roofline.silu_backward),
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

        caches = settings.replay.cache_features
        observations = trial.observations(decisions)

        def decide() -> None:
            if caches:  # for the decision, and for the last observation of each segment
                observations[PATCH_FEATURES] = twin.patch_features(observations)
                few = math.ceil(decisions / length)
                twin.patch_features(
                    {name: own[:few] for name, own in observations.items() if name == "images"}
                )
            twin.act(observations, settings.rollout.temperature)

        _, act, _ = counted(decide)
        features = None
        if caches:
            features = policy_settings.patch_features(trial.spec, str(dtype)[6:])  # type: ignore[arg-type]
        segments = _segments(trial, 2 * micro_batch_segments, length, policy_settings.chunk, features)
        counter.peak = counter.live
        update, bootstrap, begun = counted(learner.begin, segments, 1)
        saved = _Saved(held_by=[*policy.parameters(), *policy.buffers()])
        with torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda tensor: tensor):
            _, micro_batch, inside = counted(learner.micro_step, update, 0)
        _, whole, stepped = counted(learner.micro_step, update, 1)
        _, _, ended = counted(learner.end, update)
    backward = marks[1].since(marks[0])
    masters, bucket = 4 * trained, 4 * min(trained, MOST_IN_A_BUCKET)
    return Counted(
        rows,
        bootstrap,
        micro_batch.since(backward),
        backward,
        whole.since(micro_batch),
        act,
        inside,
        begun + stepped + ended,
        saved.bytes,
        counter.peak + masters + bucket + CUDA_OVERHEAD,
        policy.prompt_ids.shape[1],
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


def _segments(trial: Trial, count: int, length: int, chunk: int, features: ArraySpec | None) -> SegmentBatch:
    """Whole segments within their episodes."""
    kept = {} if features is None else {PATCH_FEATURES: features}
    spec = replace(trial.spec, observation={**trial.spec.observation, **kept})
    fields = layout(spec, length, chunk, ACTION_SIZE, 256).fields
    made = {name: np.zeros((count, *field.shape), field.dtype) for name, field in fields.items()}
    made["length"][:], made["executed"][:], made["temperature"][:] = length, chunk, 1.0
    return SegmentBatch.from_arrays(made)


def run(settings: TrainingSettings, options: Options) -> dict[str, Any]:
    """Count an update of the run's settings and show it.

    Raises:
        UserError: the policy is no vision-language-action network.
    """
    card = CARDS[options.card]
    found = count_sample(settings, card)
    own = found.settings
    of_the_value = count(own, card, own.micro_batch_segments, value_only=True)
    _show(options.card, found, replace(found, counted=of_the_value))
    if settings.policy.compile:
        _show_fused(own.policy, found, card)
    return found.figures(card)


def count_sample(settings: TrainingSettings, card: Card) -> Sample:
    """Count what one trained sample of the run's settings comes to.

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
    settings, size = replace(settings, policy=policy), settings.micro_batch_segments
    counted, larger = (count(settings, card, segments) for segments in (size, 2 * size))
    return Sample(settings, counted, Peak.of(counted, larger))


@dataclass(frozen=True)
class Peak:
    """Bytes on the device by rows of a micro-batch: a line through two counts."""

    fixed: float
    by_row: float

    @classmethod
    def of(cls, counted: Counted, other: Counted) -> Peak:
        by_row = (other.peak_bytes - counted.peak_bytes) / (other.rows - counted.rows)
        return cls(counted.peak_bytes - counted.rows * by_row, by_row)

    def at(self, rows: int) -> float:
        return self.fixed + rows * self.by_row

    def most(self, memory: int) -> int:
        """Rows that fit."""
        return max(int((memory - self.fixed) // self.by_row), 0)


@dataclass(frozen=True)
class Part:
    """A share of what a trained sample takes."""

    forwards: float
    """Of the whole network."""
    teraflop: float
    gigabytes: float
    kernels: float
    milliseconds: float

    def __add__(self, other: Part) -> Part:
        return Part(*(own + others for own, others in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Sample:
    """What a counted update and decision come to for one trained sample of a run."""

    settings: TrainingSettings
    counted: Counted
    peak: Peak

    @property
    def uses(self) -> float:
        """How often a transition trains."""
        learner, rollout = self.settings.learner, self.settings.rollout
        samples = learner.updates * learner.batch_segments * self.settings.replay.segment_length
        return samples * self.settings.policy.chunk / rollout.env_steps

    def parts(self) -> dict[str, Part]:
        """Those of the learner, by name."""
        counted, length = self.counted, self.settings.replay.segment_length
        per_update = self.settings.learner.batch_segments * length
        return {
            "forward and loss": _part(counted.forward, counted.rows, forwards=1.0),
            "backward": _part(counted.backward, counted.rows),
            "bootstrap": _part(counted.bootstrap, 2 * counted.rows, forwards=1 / length),
            "optimizer": _part(counted.optimizer, per_update),
        }

    def learner(self) -> Part:
        first, *others = self.parts().values()
        return sum(others, first)

    def act(self) -> Part:
        """The decision that made the sample, shared among its uses."""
        return _part(self.counted.act, self.settings.rollout.envs * self.uses, forwards=1 / self.uses)

    def figures(self, card: Card) -> dict[str, Any]:
        """Those for programs."""
        learner = self.learner()
        return {
            "learner_ms_per_sample": round(learner.milliseconds, 3),
            "end_to_end_ms_per_sample": round((learner + self.act()).milliseconds, 3),
            "host_waits_per_micro_batch": self.counted.waits_per_micro_batch,
            "host_waits_per_update": self.counted.waits_per_update,
            "teraflop_per_sample": round(learner.teraflop, 3),
            "saved_bytes_per_sample": self.counted.saved_bytes // self.counted.rows,
            "largest_micro_batch": self.peak.most(card.memory),
        }


def _part(cost: Cost, samples: float, forwards: float = 0.0) -> Part:
    """A cost that is shared among so many samples."""
    sizes = (cost.flops / 1e12, cost.bytes / 1e9, float(cost.kernels), 1e3 * cost.seconds)
    return Part(forwards, *(size / samples for size in sizes))


def _show(card: str, sample: Sample, value_only: Sample) -> None:
    counted, peak, uses = sample.counted, sample.peak, sample.uses
    learner = sample.learner()
    rows = {
        **sample.parts(),
        "learner": learner,
        "act": sample.act(),
        f"end to end, each transition used {uses:g} times": learner + sample.act(),
        "learner while only the value trains": value_only.learner(),
    }
    title = f"a trained sample on {card}, counted; {counted.rows} rows a micro-batch"
    cells = [
        (
            name,
            f"{own.forwards:.3g}",
            f"{own.teraflop:.3f}",
            f"{own.gigabytes:.2f}",
            f"{own.kernels:.0f}",
            f"{own.milliseconds:.2f}",
        )
        for name, own in rows.items()
    ]
    figures_table(title, ["forwards", "TFLOP", "GB moved", "kernels", "ms"], cells)
    kinds: Counter[str] = Counter(counted.forward.by_kind)
    kinds.update(counted.backward.by_kind)
    figures_table(
        "of forward, loss and backward, by kind of work",
        ["ms"],
        [(kind, f"{1e3 * seconds / counted.rows:.2f}") for kind, seconds in kinds.most_common()],
    )
    sizes = sorted({counted.rows, *PEAKS})
    figures_table(
        "peak by rows of a micro-batch",
        ["GiB"],
        [(str(size), f"{peak.at(size) / GIB:.1f}") for size in sizes],
    )
    console.print(
        f"{counted.forward.kernels + counted.backward.kernels} kernels a micro-batch; "
        f"{counted.saved_bytes / counted.rows / GIB:.3f} GiB kept for the backward pass of a sample; host "
        f"waits: {counted.waits_per_micro_batch} a micro-batch, {counted.waits_per_update} an update; at "
        f"most {peak.most(CARDS[card].memory)} rows a micro-batch"  # type: ignore[index]
    )


def _show_fused(settings: OpenVlaOftSettings, sample: Sample, card: Card) -> None:
    rows, blocks = sample.counted.rows, settings.architecture.layers
    tokens = tokens_per_sample(settings, TokensOf(prompt_tokens=sample.counted.prompt_tokens))
    cells = [
        (
            name,
            str(own.kernels),
            f"{1e3 * blocks * own.seconds(card) / rows:.2f}",
            f"{1e3 * blocks * own.copied / card.bandwidth / rows:.2f}",
        )
        for name, own in count_block(settings, rows, tokens).items()
    ]
    columns = ["kernels a block", "ms", "of them copies"]
    figures_table(f"elementwise work of {blocks} blocks as policy.compile fuses it", columns, cells)
