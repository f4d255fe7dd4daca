"""A vision-language-action policy of a few thousand weights, and segments made up for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gipo_envs.protocol import EnvironmentSpec
from gipo_vla.benchmarks.policy import Trial
from gipo_vla.policies.openvla_oft import Architecture, OpenVlaOftSettings, TowerSettings
from gipo_vla.policies.value_heads import ValueHeadSettings
from gipo_vla.replay.segment import Arrays, SegmentBatch, layout
from gipo_vla.settings.schema import LearnerSettings

ARCHITECTURE = Architecture(
    image_size=28,
    dino=TowerSettings(32, 3, 4, 64),
    siglip=TowerSettings(32, 3, 4, 80),
    hidden=48,
    intermediate=96,
    layers=2,
    heads=4,
    key_value_heads=4,
    vocabulary=1088,
    prompt_end=767,
)
LEARNER = LearnerSettings(
    updates=1,
    batch_segments=4,
    micro_batch_segments=2,
    policy_learning_rate=1e-3,
    value_learning_rate=1e-3,
    warmup_iterations=0,
    schedule="constant",
)
ALL_TOWERS = ("vision", "patch_embeddings", "projector", "language_model", "action_head")


def settings(**changes: Any) -> OpenVlaOftSettings:
    plain: dict[str, Any] = {
        "architecture": ARCHITECTURE,
        "random_weights": True,
        "prompt": "{instruction}",
        "chunk": 2,
        "action_queries": "learned",
        "value": ValueHeadSettings(width=16, heads=2),
    }
    return OpenVlaOftSettings(**(plain | changes))


def spec(of: OpenVlaOftSettings) -> EnvironmentSpec:
    return trial(of).spec


def trial(of: OpenVlaOftSettings) -> Trial:
    return Trial(of, torch.device("cpu"), act_batch=1, micro_batch=1, temperature=1.6, action_size=3)


def segments(
    of: OpenVlaOftSettings,
    lengths: Sequence[int] = (4, 3, 1, 4),
    slots: int = 4,
    seed: int = 0,
    store_logits: bool = False,
) -> SegmentBatch:
    """Segments of these lengths, acted by nobody."""
    rng = np.random.default_rng(seed)
    fields = layout(spec(of), slots, of.chunk, 3, 256, store_logits=store_logits).fields
    made: Arrays = {
        name: rng.integers(0, 2, (len(lengths), *field.shape)).astype(field.dtype)
        for name, field in fields.items()
    }
    made["observation/images"] = rng.integers(0, 256, made["observation/images"].shape).astype(np.uint8)
    made["observation/task"][:] = 0
    made["tokens"] = rng.integers(0, 256, made["tokens"].shape).astype(np.uint8)
    for name in ("log_probs", "rewards", "values", "advantages", "bootstrap_value"):
        made[name] = rng.normal(size=made[name].shape).astype(np.float32)
    made["log_probs"] *= 0.1
    made["log_probs"] -= 5.5
    made["length"] = np.array(lengths, np.int32)
    made["executed"][:] = of.chunk
    made["temperature"][:] = 1.6
    return SegmentBatch.from_arrays(made)
