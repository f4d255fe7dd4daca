"""Every tensor of a published OpenVLA(-OFT) checkpoint, and where it lives in this network.

The published files carry timm's names for the towers (fused query-key-value projections, LayerScale renamed
to ``scale_factor`` because transformers once rewrote every ``gamma``) and transformers' names for the Llama.
Tensors that never influence an action, because OpenVLA takes the second-to-last block's output, are listed
as *dead*: reading drops them, writing puts them back so that the original code loads the result.

Source of the layout: ``prismatic/extern/hf/modeling_prismatic.py`` and timm 0.9.10's ``VisionTransformer``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gipo_vla.policies.openvla_oft.settings import (
    ACTION_IDS,
    PATCH_SIZE,
    REGISTER_TOKENS,
    Architecture,
    TowerSettings,
)

Shape = tuple[int, ...]
DINO = "vision_backbone.featurizer"
SIGLIP = "vision_backbone.fused_featurizer"


@dataclass(frozen=True)
class PublishedTensor:
    """One tensor of the published layout."""

    shape: Shape
    native: tuple[str, ...]
    """Names in this network: none (dead), one, or three that the published tensor holds stacked along its
    first axis (query, key, value)."""
    rows: tuple[int, int] | None = None
    """Only these rows are used (the action ids of the language model's head)."""
    leading_axis: bool = False
    """The published tensor has an axis of length one in front that ours has not."""
    aliases: tuple[str, ...] = ()
    """Other names of the same tensor in older files."""

    @property
    def dead(self) -> bool:
        return not self.native

    @property
    def live_shape(self) -> Shape:
        """The shape of what is used."""
        if self.dead:
            return (0,)
        return self.shape if self.rows is None else (self.rows[1] - self.rows[0], *self.shape[1:])


Layout = dict[str, PublishedTensor]


def published_layout(architecture: Architecture, full_vocabulary: bool = False) -> Layout:
    """Published name to shape and place, in the order in which the original model registers them."""
    layout: Layout = {}
    _add_dino(layout, architecture.dino, architecture.patches)
    _add_siglip(layout, architecture.siglip, architecture.patches)
    vision, width = architecture.vision_width, architecture.hidden
    sizes = (("fc1", vision, 4 * vision), ("fc2", 4 * vision, width), ("fc3", width, width))
    for name, fan_in, fan_out in sizes:
        _add_linear(layout, f"projector.{name}", (f"projector.{name}",), fan_in, fan_out)
    _add_llama(layout, architecture, full_vocabulary)
    return layout


def to_native(tensor: Tensor, entry: PublishedTensor) -> list[tuple[str, Tensor]]:
    """Names and values in this network of a published tensor; nothing for a dead one."""
    if entry.dead:
        return []
    if entry.rows is not None:
        tensor = tensor[slice(*entry.rows)]
    if entry.leading_axis:
        tensor = tensor.squeeze(0)
    # Undivided it stays the tensor that was read, which needs no copy (``chunk`` would make a view of it).
    parts = (tensor,) if len(entry.native) == 1 else tensor.chunk(len(entry.native))
    return list(zip(entry.native, parts, strict=True))


def to_published(tensors: Sequence[Tensor], entry: PublishedTensor) -> Tensor:
    """The published tensor of this network's ones. With ``rows``, only those rows."""
    tensor = tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
    return tensor.unsqueeze(0) if entry.leading_axis else tensor


def _add(layout: Layout, name: str, shape: Shape, *native: str, aliases: tuple[str, ...] = ()) -> None:
    layout[name] = PublishedTensor(shape, native, aliases=aliases)


def _add_linear(
    layout: Layout, name: str, native: tuple[str, ...], fan_in: int, fan_out: int, bias: bool = True
) -> None:
    _add(layout, f"{name}.weight", (fan_out, fan_in), *(f"{module}.weight" for module in native))
    if bias:
        _add(layout, f"{name}.bias", (fan_out,), *(f"{module}.bias" for module in native))


def _add_norm(layout: Layout, name: str, native: tuple[str, ...], width: int) -> None:
    for leaf in ("weight", "bias"):
        _add(layout, f"{name}.{leaf}", (width,), *(f"{module}.{leaf}" for module in native))


def _add_patches(layout: Layout, name: str, native: str, width: int) -> None:
    _add(layout, f"{name}.weight", (width, 3, PATCH_SIZE, PATCH_SIZE), f"{native}.weight")
    _add(layout, f"{name}.bias", (width,), f"{native}.bias")


@dataclass(frozen=True)
class BlockNames:
    """What transformers calls the parts of a tower's block."""

    layers: str
    norm: str
    attention: str
    output: str
    layer_scale: str | None = None


DINO_BLOCKS = BlockNames("vision.dino.encoder.layer", "norm", "attention", "o_proj", "layer_scale")
SIGLIP_BLOCKS = BlockNames("vision.siglip.encoder.layers", "layer_norm", "self_attn", "out_proj")


def _add_blocks(layout: Layout, published: str, native: BlockNames, tower: TowerSettings) -> None:
    for index in range(tower.depth):
        # Features are read from the second-to-last block: what comes after it is dead.
        live = index < tower.live_depth
        _add_block(layout, f"{published}.blocks.{index}", f"{native.layers}.{index}", native, tower, live)


def _add_block(
    layout: Layout, block: str, layer: str, native: BlockNames, tower: TowerSettings, live: bool
) -> None:
    width = tower.width

    def place(*names: str) -> tuple[str, ...]:
        return tuple(f"{layer}.{name}" for name in names) if live else ()

    def add_scale(number: int) -> None:
        if native.layer_scale is not None:
            own = place(f"{native.layer_scale}{number}.lambda1")
            name = f"{block}.ls{number}"
            _add(layout, f"{name}.scale_factor", (width,), *own, aliases=(f"{name}.gamma",))

    _add_norm(layout, f"{block}.norm1", place(f"{native.norm}1"), width)
    qkv = place(*(f"{native.attention}.{letter}_proj" for letter in "qkv"))
    _add_linear(layout, f"{block}.attn.qkv", qkv, width, 3 * width)
    _add_linear(layout, f"{block}.attn.proj", place(f"{native.attention}.{native.output}"), width, width)
    add_scale(1)
    _add_norm(layout, f"{block}.norm2", place(f"{native.norm}2"), width)
    _add_linear(layout, f"{block}.mlp.fc1", place("mlp.fc1"), width, tower.mlp)
    _add_linear(layout, f"{block}.mlp.fc2", place("mlp.fc2"), tower.mlp, width)
    add_scale(2)


def _add_dino(layout: Layout, tower: TowerSettings, patches: int) -> None:
    width, native = tower.width, "vision.dino.embeddings"
    _add(layout, f"{DINO}.cls_token", (1, 1, width), f"{native}.cls_token")
    _add(layout, f"{DINO}.reg_token", (1, REGISTER_TOKENS, width), f"{native}.register_tokens")
    _add(layout, f"{DINO}.pos_embed", (1, patches, width), f"{native}.position_embeddings")
    _add_patches(layout, f"{DINO}.patch_embed.proj", f"{native}.projection", width)
    _add_blocks(layout, DINO, DINO_BLOCKS, tower)
    _add_norm(layout, f"{DINO}.norm", (), width)


def _add_siglip(layout: Layout, tower: TowerSettings, patches: int) -> None:
    width, native = tower.width, "vision.siglip.embeddings"
    layout[f"{SIGLIP}.pos_embed"] = PublishedTensor(
        (1, patches, width), (f"{native}.position_embedding.weight",), leading_axis=True
    )
    _add_patches(layout, f"{SIGLIP}.patch_embed.proj", f"{native}.patch_embedding", width)
    _add_blocks(layout, SIGLIP, SIGLIP_BLOCKS, tower)
    _add_norm(layout, f"{SIGLIP}.norm", (), width)
    pool = f"{SIGLIP}.attn_pool"
    _add(layout, f"{pool}.latent", (1, 1, width))
    _add_linear(layout, f"{pool}.q", (), width, width)
    _add_linear(layout, f"{pool}.kv", (), width, 2 * width)
    _add_linear(layout, f"{pool}.proj", (), width, width)
    _add_norm(layout, f"{pool}.norm", (), width)
    _add_linear(layout, f"{pool}.mlp.fc1", (), width, tower.mlp)
    _add_linear(layout, f"{pool}.mlp.fc2", (), tower.mlp, width)


def _add_llama(layout: Layout, architecture: Architecture, full_vocabulary: bool) -> None:
    width, prefix = architecture.hidden, "language_model.model"
    key_value = architecture.key_value_heads * (width // architecture.heads)
    shape = (architecture.vocabulary, width)
    _add(layout, f"{prefix}.embed_tokens.weight", shape, "language_model.embed_tokens.weight")
    for index in range(architecture.layers):
        layer, native = f"{prefix}.layers.{index}", f"language_model.layers.{index}"
        for name, fan_in, fan_out in (
            ("self_attn.q_proj", width, width),
            ("self_attn.k_proj", width, key_value),
            ("self_attn.v_proj", width, key_value),
            ("self_attn.o_proj", width, width),
            ("mlp.gate_proj", width, architecture.intermediate),
            ("mlp.up_proj", width, architecture.intermediate),
            ("mlp.down_proj", architecture.intermediate, width),
        ):
            _add_linear(layout, f"{layer}.{name}", (f"{native}.{name}",), fan_in, fan_out, bias=False)
        for name in ("input_layernorm", "post_attention_layernorm"):
            _add(layout, f"{layer}.{name}.weight", (width,), f"{native}.{name}.weight")
    _add(layout, f"{prefix}.norm.weight", (width,), "language_model.norm.weight")
    first = architecture.first_action_id
    rows = None if full_vocabulary else (first, first + ACTION_IDS)
    layout["language_model.lm_head.weight"] = PublishedTensor(shape, ("action_head.weight",), rows)
