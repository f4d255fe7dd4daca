"""Operations on ``fake_device``, counted and turned into the time that a card would take for them."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from gipo_vla.benchmarks.fake_device import KIND

aten = torch.ops.aten


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


ADDS_TO_A_COPY = (aten.addmm.default, aten.baddbmm.default)
"""Products that add to a matrix, but not in its place: CUDA copies it first."""


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
        if func in ADDS_TO_A_COPY and args[0].dim() > 1:  # of what it adds to; a bias is added in passing
            copied = 2.0 * _bytes(outputs[0])
            self.seconds["elementwise"] += max(copied / self.card.bandwidth, self.card.launch)
            self.bytes += copied
            self.kernels += 1
        # A multiply-add as two. What is done in place is as much work as what is not.
        counted = flop_registry.get(getattr(aten, name.removesuffix("_"), None))
        flops = float(counted(*args, **(kwargs or {}), out_val=result)) if counted else 0.0
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
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride()) if stride)
    return math.prod(sizes) * tensor.element_size()


def attention(
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
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        shape = (*query.shape[:3], key.shape[2])
        attn_mask = torch.where(attn_mask, 0.0, -torch.inf).to(query.dtype).expand(shape)
    elif attn_mask is not None:
        attn_mask = attn_mask.expand(-1, query.shape[1], -1, -1)
    trains = torch.is_grad_enabled() and query.requires_grad
    efficient = aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, trains, 0.0, is_causal, scale=scale)[0]


def silu_backward(gradient: Tensor, gate: Tensor) -> Tensor:
    """CUDA's one kernel, for another of the same tensors: torch takes it apart for devices of others."""
    return gradient * gate


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


def rms_norm(hidden: Tensor, shape: tuple[int, ...], weight: Tensor, eps: float) -> Tensor:
    return _RmsNorm.apply(hidden, weight)
