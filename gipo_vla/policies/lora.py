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

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            base = self.base_layer(x)
            if self.disable_adapters:
                return base
            used = arithmetic or base.dtype
            low = functional.linear(x.to(used), self.lora_A[ADAPTER].weight.to(used)) * self.scaling[ADAPTER]
            high = self.lora_B[ADAPTER].weight.to(used)
            if used != base.dtype:
                return base + functional.linear(low, high).to(base.dtype)
            return torch.addmm(base.flatten(0, -2), low.flatten(0, -2), high.t()).view_as(base)

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
