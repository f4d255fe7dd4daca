"""A Llama with fewer passes over memory: transformers' modules with the operations that torch has fused.

What a GPU does between two matrix products is bound by bandwidth, and a third of a sample's time went there.
``functional.rms_norm`` is one kernel each way, where transformers' own takes eight and converts to float32
and back; ``rotate`` turns queries and keys in three kernels each way and keeps nothing of them. Attention
goes straight to torch's. Parameters and their names stay transformers' own. (torch has no fused SiLU and
product; ``policy.compile`` makes one.)

Shape suffixes: B batch, H heads, T tokens, D width of a head, E width of the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm


class FusedRmsNorm(LlamaRMSNorm):
    """Root mean square normalisation, in float32 within and rounded once."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return functional.rms_norm(
            hidden_states, (hidden_states.shape[-1],), self.weight, self.variance_epsilon
        )


class Rotation(torch.autograd.Function):
    """x cos + rotate_half(x) sin, whose gradient is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, signed_sin)
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, signed_sin = ctx.saved_tensors
        turned = gradient.roll(gradient.shape[-1] // 2, -1)
        return torch.addcmul(gradient * cos, turned, signed_sin, value=-1), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of x (B, H, T, D) by cos and sin (B, T, D), whose halves are equal.

    ``rotate_half`` is a roll by half the width with the first half negated; the sign goes to the sine.
    """
    first, second = sin.chunk(2, dim=-1)
    signed = torch.cat([-first, second], dim=-1)
    return Rotation.apply(x, cos.unsqueeze(1), signed.unsqueeze(1))


class FusedAttention(LlamaAttention):
    """Attention of all tokens to all, but for what the mask leaves out."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        assert position_embeddings is not None
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(heads).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        result = functional.scaled_dot_product_attention(
            rotate(query, *position_embeddings),
            rotate(key, *position_embeddings),
            value,
            attn_mask=attention_mask,
            scale=self.scaling,
            enable_gqa=self.num_key_value_groups > 1,
        )
        return self.o_proj(result.transpose(1, 2).flatten(2)), None


def fuse(model: LlamaModel) -> None:
    """Let a model compute so (in place; no parameter is touched)."""
    for module in model.modules():
        if type(module) is LlamaRMSNorm:
            module.__class__ = FusedRmsNorm
        elif type(module) is LlamaAttention:
            module.__class__ = FusedAttention
