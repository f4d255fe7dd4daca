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
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any, Literal, Self
from unittest import mock

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gipo_envs.errors import UserError
from gipo_vla.benchmarks import Options
from gipo_vla.benchmarks.fake_device import KIND, Engine, HostWaits, fake_device
from gipo_vla.benchmarks.policy import Trial
from gipo_vla.config import Config
from gipo_vla.credit import base as credits
from gipo_vla.credit.normalization import AdvantageNormalizer
from gipo_vla.learner import engine as engines
from gipo_vla.learner import learner as learners
from gipo_vla.learner.learner import Learner
from gipo_vla.policies.memory_plan import CUDA_OVERHEAD, MOST_IN_A_BUCKET
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings
from gipo_vla.policies.registry import network_dtype
from gipo_vla.replay.segment import SegmentBatch, layout
from gipo_vla.telemetry.console import console

aten = torch.ops.aten
ACTION_SIZE = 7


@dataclass(frozen=True)
class Card:
    """What kernels of good shapes reach on a card; operations and bytes a second."""

    bfloat16: float
    float32: float
    attention: float
    """Of bfloat16 flash attention, forward and backward."""
    bandwidth: float
    memory: int
    """Bytes that a process can have."""
    launch: float = 2.5e-6
    """Seconds from one kernel to the next."""


CARDS: dict[Literal["H200", "H100"], Card] = {
    # 790 TFLOP/s is what large bfloat16 products reach of 989, and layers of this size reach 85 % of that.
    "H200": Card(0.85 * 790e12, 0.85 * 60e12, 0.85 * 350e12, 4.0e12, 139 << 30),
    "H100": Card(0.85 * 790e12, 0.85 * 60e12, 0.85 * 350e12, 2.9e12, 79 << 30),
}

FREE = {
    "_has_compatible_shallow_copy_type", "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk",
    "detach", "device", "empty", "empty_like", "empty_strided", "expand", "flatten", "is_same_size",
    "lift_fresh", "movedim", "new_empty", "new_empty_strided", "permute", "reshape", "result_type",
    "select", "slice", "split", "split_with_sizes", "squeeze", "sym_numel", "sym_size", "sym_stride", "t",
    "transpose", "unbind", "unflatten", "unsqueeze", "view", "view_as",
}  # fmt: skip
"""Operations without a kernel, beside views."""


class Roofline(TorchDispatchMode):
    """Counts the operations within, and the storages that are alive on the device."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card
        self.seconds: dict[str, float] = defaultdict(float)
        """By kind of work."""
        self.flops = self.bytes = 0.0
        self.kernels = 0
        self.live = self.peak = 0
        self._storages: set[int] = set()

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def cost(self) -> Cost:
        """Everything so far."""
        return Cost(dict(self.seconds), self.flops, self.bytes, self.kernels)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = _tensors(result)
        for tensor in outputs:
            self._track(tensor)
        name = func.overloadpacket.__name__
        if name in FREE or func.is_view:
            return result
        tensors = [*_tensors((args, kwargs)), *outputs]
        if not any(tensor.device.type == KIND for tensor in tensors):
            return result
        moved = sum(map(_bytes, tensors))
        flops = _flops(name, args, outputs)
        floats = next((tensor.dtype for tensor in outputs if tensor.is_floating_point()), torch.int64)
        card, narrow = self.card, floats == torch.bfloat16
        kind, rate = "elementwise", 1.0
        if "attention" in name:
            kind, rate = "attention", card.attention if narrow else card.float32
        elif flops:
            kind, rate = f"matrices, {str(floats)[6:]}", card.bfloat16 if narrow else card.float32
        self.seconds[kind] += max(flops / rate, moved / card.bandwidth, card.launch)
        self.flops += flops
        self.bytes += moved
        self.kernels += 1
        return result

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.device.type != KIND or storage._cdata in self._storages:
            return
        size = -(-storage.nbytes() // 512) * 512  # as the allocator rounds
        self._storages.add(storage._cdata)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, storage._cdata, size)

    def _free(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size


@dataclass(frozen=True)
class Cost:
    """What part of an update takes."""

    by_kind: dict[str, float]
    """Seconds."""
    flops: float
    bytes: float
    kernels: int

    @property
    def seconds(self) -> float:
        return sum(self.by_kind.values())

    def since(self, earlier: Cost) -> Cost:
        return Cost(
            {kind: own - earlier.by_kind.get(kind, 0.0) for kind, own in self.by_kind.items()},
            self.flops - earlier.flops,
            self.bytes - earlier.bytes,
            self.kernels - earlier.kernels,
        )


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """What a kernel moves of a tensor; an expanded one is read once."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        elements *= size if stride else 1
    return elements * tensor.element_size()


def _flops(name: str, args: tuple[Any, ...], outputs: list[Tensor]) -> float:
    """Of a matrix operation, a multiply-add as two; 0 of others."""
    if name == "mm":
        return 2.0 * args[0].numel() * args[1].shape[1]
    if name == "addmm":
        return 2.0 * args[1].numel() * args[2].shape[1]
    if name == "bmm":
        return 2.0 * args[0].numel() * args[1].shape[2]
    if name == "convolution":
        return 2.0 * outputs[0].numel() * args[1][0].numel()
    if name.startswith("_scaled_dot_product"):
        backward = name.endswith("backward")
        query, key = args[1:3] if backward else args[:2]
        return (10.0 if backward else 4.0) * query.numel() * key.shape[2]
    return 0.0


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention`` as CUDA dispatches it, which a build without CUDA cannot say."""
    if query.dtype == torch.bfloat16 and attn_mask is None:
        flash = aten._scaled_dot_product_flash_attention
        return flash(query, key, value, 0.0, is_causal, False, scale=scale)[0]
    if attn_mask is not None:
        shape = (*query.shape[:3], key.shape[2])
        attn_mask = torch.where(attn_mask, 0.0, -torch.inf).to(query.dtype).expand(shape)
    trains = torch.is_grad_enabled() and query.requires_grad
    efficient = aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, trains, 0.0, is_causal, scale=scale)[0]


class _RmsNorm(torch.autograd.Function):
    """What CUDA's fused kernels read and write, for which a build without CUDA has nothing: one operation of
    the same tensors each way."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return hidden * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        hidden, _ = ctx.saved_tensors
        return gradient * hidden, None


def _rms_norm(hidden: Tensor, shape: tuple[int, ...], weight: Tensor, eps: float) -> Tensor:
    return _RmsNorm.apply(hidden, weight)


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


def count(settings: Config, card: Card, micro_batch_segments: int) -> Counted:
    """Count an update of two micro-batches of so many segments, and one decision of all environments."""
    policy_settings = settings.policy
    assert isinstance(policy_settings, OpenVlaOftSettings)
    length = settings.replay.segment_length
    learner_settings = replace(
        settings.learner,
        batch_segments=2 * micro_batch_segments,
        micro_batch_segments=micro_batch_segments,
        value_only_updates=0,
    )
    rows = micro_batch_segments * length
    decisions = settings.rollout.workers * settings.rollout.envs_per_worker
    dtype = network_dtype(settings.learner.precision, torch.device("cuda"))
    engine = mock.patch.object(
        engines, "build_engine", lambda policy, optimizer, s, d, size, count: Engine(policy, optimizer, count)
    )
    # numpy's work, on numbers that are not there.
    metrics: Any = mock.patch.object(learners, "staleness_metrics", lambda packed: {})
    attention = mock.patch.object(functional, "scaled_dot_product_attention", _attention)
    norm = mock.patch.object(functional, "rms_norm", _rms_norm)
    with (
        engine,
        metrics,
        attention,
        norm,
        fake_device() as device,
        Roofline(card) as roofline,
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
            credits.create(settings.credit),
            AdvantageNormalizer(settings.credit.normalize),
            device,
            1,
            1.0,
            reference=reference,
        )
        learner.normalizer.load_state_dict({"count": 1.0, "sum": 0.0, "sum_of_squares": 1.0})
        trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        held = roofline.live

        observations = trial.observations(decisions)
        before = roofline.cost()
        twin.act(observations, settings.rollout.temperature)
        act = roofline.cost().since(before)

        segments = _segments(trial, 2 * micro_batch_segments, length, policy_settings.chunk)
        waits.places.clear()
        roofline.peak, before = roofline.live, roofline.cost()
        update = learner.begin(segments, 1)
        bootstrap, begun = roofline.cost().since(before), waits.count

        waits.places.clear()
        saved = _Saved(held_by=[*policy.parameters(), *policy.buffers()])
        before = roofline.cost()
        with torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda tensor: tensor):
            learner.micro_step(update, 0)
        micro_batch, inside = roofline.cost().since(before), waits.count

        waits.places.clear()
        before = roofline.cost()
        learner.micro_step(update, 1)
        whole = roofline.cost().since(before)
        learner.end(update)
        closed = waits.count
    del held
    masters, bucket = 4 * trained, 4 * min(trained, MOST_IN_A_BUCKET)
    return Counted(
        rows,
        bootstrap,
        micro_batch,
        whole.since(micro_batch),
        act,
        inside,
        begun + closed,
        saved.bytes,
        roofline.peak + masters + bucket + CUDA_OVERHEAD,
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


def run(settings: Config, options: Options) -> dict[str, Any]:
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


def summarize(settings: Config, card: Card, counted: Counted, other: Counted) -> dict[str, Any]:
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
    table = Table(title=f"a trained sample on {card}, counted; {counted.rows} rows a micro-batch")
    table.add_column("")
    table.add_column("ms", justify="right")
    for name, milliseconds in figures["parts_ms_per_sample"].items():
        table.add_row(name, f"{milliseconds:.2f}")
    for name, milliseconds in figures["kinds_ms_per_sample"].items():
        table.add_row(f"  of the first: {name}", f"{milliseconds:.2f}")
    table.add_row("learner", f"{figures['learner_ms_per_sample']:.2f}")
    table.add_row(
        f"end to end, each transition used {figures['uses_of_a_transition']:g} times",
        f"{figures['end_to_end_ms_per_sample']:.2f}",
    )
    console.print(table)
    console.print(
        f"{figures['teraflop_per_sample']:.2f} TFLOP, {figures['gigabytes_moved_per_sample']:.1f} GB moved, "
        f"{figures['kernels_per_micro_batch']} kernels a micro-batch, "
        f"{figures['saved_bytes_per_sample'] / 2**30:.3f} GiB kept for the backward pass of a sample; host "
        f"waits: {counted.waits_per_micro_batch} a micro-batch, {counted.waits_per_update} an update; peak "
        f"in GiB by rows of a micro-batch {figures['peak_gib_by_micro_batch']}, at most "
        f"{figures['largest_micro_batch']} rows"
    )
