"""Floating-point operations of one sample, counted over the matrices (norms and activations are left out).

A multiply-add counts as two. With frozen weights the backward pass costs as much as the forward pass (only
gradients of inputs), with trained ones twice as much; activation checkpointing adds a forward pass.

Shape suffixes: T tokens, E width of the Llama, N action positions.
"""

from __future__ import annotations

from gipo_vla.policies.memory_plan import Workload, tokens_per_sample
from gipo_vla.policies.openvla_oft.settings import (
    ACTION_IDS,
    PATCH_SIZE,
    REGISTER_TOKENS,
    OpenVlaOftSettings,
    TowerSettings,
)


def forward_flops(settings: OpenVlaOftSettings, workload: Workload) -> float:
    """Return the operations of one sample's forward pass."""
    return vision_flops(settings, workload) + language_flops(settings, workload)


def train_flops(settings: OpenVlaOftSettings, workload: Workload) -> float:
    """Return the operations of one sample's forward and backward pass."""
    vision, language = vision_flops(settings, workload), language_flops(settings, workload)
    full = settings.training == "full"
    backward = 2 if full else 1
    vision_trains = full or bool({"vision", "patch_embeddings"} & set(settings.lora.towers))
    again = 1 if settings.activation_checkpointing else 0
    return language * (1 + backward + again) + vision * (1 + (backward + again if vision_trains else 0))


def vision_flops(settings: OpenVlaOftSettings, workload: Workload) -> float:
    """Return the operations of both towers and the projector, over all images."""
    architecture = settings.architecture
    patches, vision, width = architecture.patches, architecture.vision_width, architecture.hidden
    total = _tower(architecture.dino, patches, 1 + REGISTER_TOKENS)
    total += _tower(architecture.siglip, patches, 0)
    total += 2.0 * patches * (vision * 4 * vision + 4 * vision * width + width * width)
    return workload.images * total


def language_flops(settings: OpenVlaOftSettings, workload: Workload) -> float:
    """Return the operations of the Llama and the action head."""
    architecture = settings.architecture
    tokens, width = tokens_per_sample(settings, workload), architecture.hidden
    key_value = width * architecture.key_value_heads // architecture.heads
    matrices = 2 * width * (width + key_value) + 3 * width * architecture.intermediate
    attention = 2 * tokens * width  # scores and their use, for one token
    positions = settings.chunk * workload.action_dims
    return 2.0 * tokens * architecture.layers * (matrices + attention) + 2.0 * positions * width * ACTION_IDS


def _tower(tower: TowerSettings, patches: int, prefix: int) -> float:
    tokens = patches + prefix
    matrices = 4 * tower.width**2 + 2 * tower.width * tower.mlp
    blocks = 2.0 * tokens * tower.live_depth * (matrices + 2 * tokens * tower.width)
    return blocks + 2.0 * patches * 3 * PATCH_SIZE**2 * tower.width
