"""A Llama with fewer passes over memory: transformers' modules with the operations that torch has fused.

What a GPU does between two matrix products is bound by bandwidth, and a third of a sample's time went there.
So norms are one kernel each way (``functional.rms_norm``), queries and keys are turned in three without a
copy of either (``Rotation``), the gate of an MLP in two (``GatedSilu``), projections that read the same
states share what their adapters make of them (``lora.project``), and the last block answers only where it is
read: of the 357 tokens of a sample, 56. Attention goes straight to torch's, with one mask for all blocks.
Parameters and their names stay transformers' own.

Shape suffixes: B batch, H heads, T tokens, R tokens that are read, D width of a head, E width of the model, I
width within an MLP.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from gipo_vla.policies.lora import project

silu_backward = torch.ops.aten.silu_backward
ALIGNMENT = 8
"""Entries to which CUDA's attention with a mask wants its rows aligned; it copies one that is not."""


class FusedRmsNorm(LlamaRMSNorm):
    """Root mean square normalisation, in float32 within and rounded once."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return functional.rms_norm(
            hidden_states, (hidden_states.shape[-1],), self.weight, self.variance_epsilon
        )


class Rotation(torch.autograd.Function):
    """(a, b) to (a cos - b sin, b cos + a sin) of the halves a and b of each head, whose gradient is the
    rotation by the opposite angle. Keeps nothing of what it turns."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(gradient, cos, sin, -1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    turned = x * cos
    to_first, to_second = turned.chunk(2, dim=-1)
    to_first.addcmul_(second, sin, value=-sign)
    to_second.addcmul_(first, sin, value=sign)
    return turned


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of x (B, H, T, D) by cos and sin (B, T, D), whose halves are equal."""
    return Rotation.apply(x, cos.unsqueeze(1), sin.chunk(2, dim=-1)[0].unsqueeze(1))


class GatedSilu(torch.autograd.Function):
    """silu(gate) up, of (B, T, I) each."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        activated = functional.silu(gate)
        ctx.save_for_backward(gate, up, activated)
        return activated * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up, activated = ctx.saved_tensors
        return silu_backward(gradient * up, gate), gradient * activated


class FusedBlock(LlamaDecoderLayer):
    """Attention of all tokens to all, but for what the mask leaves out, and the MLP."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        read: slice | None = None,
    ) -> Tensor:
        """(B, T, E) to (B, T, E), or to (B, R, E) of the tokens that are read.

        Args:
            position_embeddings: cosine and sine (B, T, D).
            attention_mask: to be added to the scores, (B, 1, T, T).
        """
        attention, normed, turn = self.self_attn, self.input_layernorm(hidden_states), position_embeddings
        if read is None:
            query, key, value = project(normed, (attention.q_proj, attention.k_proj, attention.v_proj))
            turn_query = turn
        else:
            key, value = project(normed, (attention.k_proj, attention.v_proj))
            (query,) = project(normed[:, read].contiguous(), (attention.q_proj,))
            turn_query = (turn[0][:, read], turn[1][:, read])
            attention_mask = None if attention_mask is None else attention_mask[:, :, read]
            hidden_states = hidden_states[:, read]
        query, key, value = (
            own.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for own in (query, key, value)
        )
        seen = functional.scaled_dot_product_attention(
            rotate(query, *turn_query),
            rotate(key, *turn),
            value,
            attn_mask=attention_mask,
            scale=attention.scaling,
            enable_gqa=attention.num_key_value_groups > 1,
        )
        hidden_states = hidden_states + attention.o_proj(seen.transpose(1, 2).flatten(2))
        mlp, normed = self.mlp, self.post_attention_layernorm(hidden_states)
        gate, up = project(normed, (mlp.gate_proj, mlp.up_proj))
        return hidden_states + mlp.down_proj(GatedSilu.apply(gate, up))


class FusedLlama(LlamaModel):
    """Embedded tokens to hidden states, in one pass without a cache."""

    def forward(
        self,
        embeddings: Tensor,
        position_ids: Tensor,
        attends: Tensor | None = None,
        read: slice | None = None,
    ) -> Tensor:
        """Hidden states (B, T, E) after the final norm, or those (B, R, E) of the tokens that are read.

        Args:
            embeddings: (B, T, E).
            position_ids: int64 (B, T).
            attends: bool, expandable to (B, 1, T, T): whether a token (rows) sees another. None: all do.
        """
        turn = self.rotary_emb(embeddings, position_ids)
        mask = None if attends is None else _added_to_scores(attends, embeddings)
        hidden = embeddings
        for block in self.layers:
            own = read if block is self.layers[-1] else None
            hidden = block(hidden, position_embeddings=turn, attention_mask=mask, read=own)
        return self.norm(hidden)


def _added_to_scores(attends: Tensor, embeddings: Tensor) -> Tensor:
    """(B, 1, T, T): 0 where a token sees another, else minus infinity; rows aligned."""
    batch, tokens, _ = embeddings.shape
    wide = -(-tokens // ALIGNMENT) * ALIGNMENT
    aligned = embeddings.new_zeros(*attends.shape[:-1], wide)[..., :tokens]
    return aligned.masked_fill_(~attends, -torch.inf).expand(batch, 1, tokens, tokens)


def fuse(model: LlamaModel) -> FusedLlama:
    """Let a model compute so (in place; no parameter is touched)."""
    fused = {LlamaRMSNorm: FusedRmsNorm, LlamaDecoderLayer: FusedBlock, LlamaModel: FusedLlama}
    for module in model.modules():
        module.__class__ = fused.get(type(module), type(module))
    assert isinstance(model, FusedLlama)
    return model
