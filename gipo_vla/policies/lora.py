"""Low-rank adapters through peft, with every target module named.

peft's ``all-linear`` skips or hits the output head depending on how a Llama is wrapped, so nothing is left
to patterns: the caller lists the modules by tower, and injection fails if a single one was missed or added.
Dropout is always 0: the ratio of two log-probs must not contain its noise.

Adapters are float32 parameters whatever the network computes in, like everything that trains. Only their
arithmetic follows the network: each use casts them (``Adapted``), so that no input is converted and the sum
with the frozen layer's output happens inside the product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gipo_vla.settings.registry import check

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

ADAPTER = "default"
Tower = Literal["vision", "patch_embeddings", "projector", "language_model", "action_head"]


@dataclass(frozen=True)
class LoraSettings:
    """Which matrices get an adapter, and of which size."""

    rank: int = 32
    """Inner size of every adapter."""
    alpha: float = 16.0
    """Adapters are scaled by alpha / rank. 16 with rank 32 is what OpenVLA-OFT publishes."""
    towers: tuple[Tower, ...] = ("language_model",)
    """Parts of the network with adapters. The published checkpoints were made with all of them; the
    language model alone spares the vision towers' activations."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What adapters are multiplied in; their parameters, gradients and moments are float32 always. auto: the
    network's own. float32 in a bfloat16 network converts every input: half as much activation memory again
    and a quarter of the speed, for rounding that the frozen layer's output does anyway."""

    def __post_init__(self) -> None:
        check(self.rank >= 1, "policy.lora.rank", self.rank, "be at least 1")
        check(self.alpha > 0, "policy.lora.alpha", self.alpha, "be above 0")
        once = self.towers and len(set(self.towers)) == len(self.towers)
        parts = ", ".join(get_args(Tower))
        check(bool(once), "policy.lora.towers", list(self.towers), f"name parts out of {parts}, each once")


def inject(
    network: nn.Module, targets: Sequence[str], settings: LoraSettings, ranks: Mapping[str, int] | None = None
) -> None:
    """Freeze a network and put an adapter on each of the named modules (in place).

    The adapters start as the identity. ``ranks`` overrides the rank of single modules, at the same scale
    alpha / rank.
    """
    # Imported here: the settings above are read by every command, and peft brings transformers along.
    from peft import LoraConfig, inject_adapter_in_model

    network.requires_grad_(False)
    ranks = {name: rank for name, rank in (ranks or {}).items() if rank != settings.rank}
    scale = settings.alpha / settings.rank
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=list(targets),
        rank_pattern={f"^{name}$": rank for name, rank in ranks.items()},
        alpha_pattern={f"^{name}$": scale * rank for name, rank in ranks.items()},
        bias="none",
    )
    # peft's documented way to bring one's own layers ("Custom layers that do not have a LoRA equivalent").
    config._register_custom_module(_layers(settings.dtype))
    inject_adapter_in_model(config, network, ADAPTER)
    injected = {name for name, _ in adapted_modules(network)}
    if injected != set(targets):
        missed, extra = sorted(set(targets) - injected), sorted(injected - set(targets))
        raise RuntimeError(f"peft adapted other modules than asked: missed {missed[:5]}, extra {extra[:5]}")
    for parameter in adapter_parameters(network):
        parameter.data = parameter.data.float()


@cache
def _layers(dtype: Literal["auto", "float32", "bfloat16"]) -> dict[type[nn.Module], type[nn.Module]]:
    """peft's layers, computing as ``LoraSettings.dtype`` says, by the layer that they adapt."""
    from peft.tuners.lora import layer

    arithmetic = None if dtype == "auto" else getattr(torch, dtype)

    class AdaptedLinear(layer.Linear):
        """base(x) + B A x scale, the sum inside the product with B."""

        @property
        def fuses(self) -> bool:
            """All of it in the frozen layer's own dtype; see ``AdaptedProducts``."""
            base = self.base_layer
            return type(base) is nn.Linear and arithmetic in (None, base.weight.dtype)

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if self.disable_adapters:
                return self.base_layer(x)
            if self.fuses:
                return project(x, (self,))[0]
            base = self.base_layer(x)
            used = arithmetic or base.dtype
            low = functional.linear(x.to(used), self.lora_A[ADAPTER].weight.to(used)) * self.scaling[ADAPTER]
            return base + functional.linear(low, self.lora_B[ADAPTER].weight.to(used)).to(base.dtype)

    class AdaptedConv2d(layer.Conv2d):
        """The same for a convolution, whose A has the window and whose B is 1 x 1."""

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            base = self.base_layer(x)
            if self.disable_adapters:
                return base
            used = arithmetic or base.dtype
            window = self.lora_A[ADAPTER]
            low = functional.conv2d(
                x.to(used), window.weight.to(used), None, window.stride, window.padding, window.dilation
            )
            high = functional.conv2d(low * self.scaling[ADAPTER], self.lora_B[ADAPTER].weight.to(used))
            return base + high.to(base.dtype)

    return {nn.Linear: AdaptedLinear, nn.Conv2d: AdaptedConv2d}


def project(x: Tensor, modules: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """What linear maps of one input (..., E) give, each (..., outputs): with adapters, in fewer passes over
    it than one by one."""
    adapted: list[Any] = [own for own in modules if getattr(own, "fuses", False)]
    scales = {own.scaling[ADAPTER] for own in adapted if not own.disable_adapters}
    if len(adapted) != len(modules) or len(scales) != 1:
        return tuple(own(x) for own in modules)
    return AdaptedProducts.apply(
        x,
        scales.pop(),
        *(own.base_layer.weight for own in adapted),
        *(own.base_layer.bias for own in adapted),
        *(own.lora_A[ADAPTER].weight for own in adapted),
        *(own.lora_B[ADAPTER].weight for own in adapted),
    )


class AdaptedProducts(torch.autograd.Function):
    """W x + b + scale B A x of several frozen W and their adapters, in the dtype of x.

    The adapters' first halves are one product, and every sum, forward and of the gradient of x, happens
    inside a product: autograd would write each summand and read it again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Args: tensors: of n maps their weights, biases (or None), A and B: n of each in this order."""
        count = len(tensors) // 4
        weights, biases, lows, highs = (tensors[i * count : (i + 1) * count] for i in range(4))
        flat = x.flatten(0, -2)
        ranks = [len(low) for low in lows]
        low = (torch.cat(lows) if count > 1 else lows[0]).to(x.dtype)
        inner = flat @ low.t()  # of all adapters, side by side
        if scale != 1:
            inner.mul_(scale)
        highs = tuple(high.to(x.dtype) for high in highs)
        results = []
        for weight, bias, part, high in zip(weights, biases, inner.split(ranks, dim=1), highs):
            result = functional.linear(flat, weight, bias).addmm_(part, high.t())
            results.append(result.unflatten(0, x.shape[:-1]))
        ctx.save_for_backward(flat, low, inner, *highs, *weights)
        ctx.scale, ctx.ranks, ctx.shape = scale, ranks, x.shape
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat, low, inner, *rest = ctx.saved_tensors
        ranks, count = ctx.ranks, len(ctx.ranks)
        highs, weights = rest[:count], rest[count:]
        # The heads of queries and keys come transposed.
        rows = [gradient.reshape(len(flat), -1) for gradient in gradients]
        of_highs = [(own.t() @ part).float() for own, part in zip(rows, inner.split(ranks, 1))]
        of_each = [own @ high for own, high in zip(rows, highs)]
        of_inner = torch.cat(of_each, dim=1) if count > 1 else of_each[0]
        if ctx.scale != 1:
            of_inner.mul_(ctx.scale)
        of_lows = (of_inner.t() @ flat).float().split(ranks)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = rows[0] @ weights[0]
            for own, weight in zip(rows[1:], weights[1:]):
                of_x.addmm_(own, weight)
            of_x = of_x.addmm_(of_inner, low).view(ctx.shape)
        return (of_x, None, *[None] * (2 * count), *of_lows, *of_highs)


def adapted_modules(network: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Name and module of every adapted layer."""
    from peft.tuners.lora import LoraLayer

    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def adapter_parameters(network: nn.Module) -> Iterator[nn.Parameter]:
    for name, parameter in network.named_parameters():
        if f".lora_A.{ADAPTER}." in name or f".lora_B.{ADAPTER}." in name:
            yield parameter


@contextmanager
def without_adapters(network: nn.Module) -> Iterator[None]:
    """The network as it was before adapters, for the moment.

    Not peft's ``enable_adapters``, which would also change what requires a gradient.
    """
    layers = [layer for _, layer in adapted_modules(network)]
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, disabled in zip(layers, before):
            layer._disable_adapters = disabled


@torch.no_grad()
def merged_weight(layer: LoraLayer) -> Tensor:
    """The weight of a layer with its adapter added, as a new tensor; the layer stays as it is.

    The sum is made in float32 and rounded once.
    """
    weight = layer.get_base_layer().weight
    low, high = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    return low_rank_sum(weight, low, high, layer.scaling[ADAPTER])


@torch.no_grad()
def low_rank_sum(weight: Tensor, low: Tensor, high: Tensor, scale: float) -> Tensor:
    """weight + scale * high @ low in float32, rounded to the weight's dtype.

    ``low`` (rank, inputs) is peft's A and ``high`` (outputs, rank) its B; a convolution's are 4-D, with the
    window in A.
    """
    delta = high.float().flatten(1) @ low.float().flatten(1)
    return (weight.float() + scale * delta.view(weight.shape)).to(weight.dtype)
