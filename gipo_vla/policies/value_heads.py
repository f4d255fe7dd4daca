"""Value heads on the hidden states of a vision-language-action model.

Two kinds: attention pooling over the states that the actions are read from (the default: every one of them
has seen the whole input), and an MLP on the first of those states alone, as in RLinf. Both work on detached
states unless told otherwise: a value loss that reaches a 7B policy's features moves the policy for reasons
that have nothing to do with acting. The heads stay in float32 when the model is cast: values are regressed on
differences of returns, which the 8 bits of bfloat16 would quantise.

Shape suffixes: B batch, N action positions, E width of the model, W width of the head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from gipo_vla.policies.precision import KeepsDtype
from gipo_vla.settings.registry import check


@dataclass(frozen=True)
class ValueHeadSettings:
    """How a VLA estimates the value of an observation."""

    kind: Literal["attention", "token"] = "attention"
    """attention: pool over all action positions. token: an MLP on the first of them (RLinf)."""
    width: int = 512
    """Width of the hidden layers (the second one of ``token`` has a quarter of it)."""
    heads: int = 8
    """Attention heads of ``attention``."""
    detach: bool = True
    """Do not let the value loss reach the policy's features."""

    def __post_init__(self) -> None:
        fits = self.width >= 4 and self.heads >= 1 and self.width % self.heads == 0
        must = f"be at least 4 and a multiple of policy.value.heads, {self.heads}"
        check(fits, "policy.value.width", self.width, must)


class AttentionPoolingValue(KeepsDtype):
    """One learned query attends to all action positions; an MLP reads the result."""

    def __init__(self, width: int, settings: ValueHeadSettings) -> None:
        super().__init__()
        self.heads = settings.heads
        self.norm = nn.LayerNorm(width)
        self.keys_values = nn.Linear(width, 2 * settings.width)
        self.query = nn.Parameter(torch.empty(settings.width))
        self.hidden = nn.Linear(settings.width, settings.width)
        self.output = nn.Linear(settings.width, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small first values: the policy starts from advantages that are returns, not noise."""
        for module in (self.norm, self.keys_values, self.hidden, self.output):
            module.reset_parameters()
        nn.init.normal_(self.query)
        nn.init.normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Values float32 (B,) from states (B, N, E)."""
        batch = states.shape[0]
        keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, W / heads)
            for part in self.keys_values(self.norm(states.float())).chunk(2, dim=-1)
        )
        query = self.query.view(1, self.heads, 1, -1).expand(batch, -1, -1, -1)
        pooled = functional.scaled_dot_product_attention(query, keys, values).reshape(batch, -1)
        return self.output(functional.gelu(self.hidden(pooled))).squeeze(-1)


class TokenValue(KeepsDtype):
    """Linear, GELU, Linear, GELU, Linear on the first action position."""

    def __init__(self, width: int, settings: ValueHeadSettings) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(width, settings.width)
        self.hidden2 = nn.Linear(settings.width, settings.width // 4)
        self.output = nn.Linear(settings.width // 4, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in ``AttentionPoolingValue``; the first layer is scaled to states of unit variance."""
        for module in (self.hidden1, self.hidden2, self.output):
            module.reset_parameters()
        nn.init.normal_(self.hidden1.weight, std=1 / math.sqrt(self.hidden1.in_features))
        nn.init.normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Values float32 (B,) from states (B, N, E)."""
        hidden = functional.gelu(self.hidden1(states[:, 0].float()))
        return self.output(functional.gelu(self.hidden2(hidden))).squeeze(-1)


ValueHead = AttentionPoolingValue | TokenValue


def build_value_head(width: int, settings: ValueHeadSettings) -> ValueHead:
    """The head that the settings name, in float32, initialised."""
    if settings.kind == "token":
        return TokenValue(width, settings)
    return AttentionPoolingValue(width, settings)
