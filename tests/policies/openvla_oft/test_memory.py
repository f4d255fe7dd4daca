"""The plan against what is built and what autograd really keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gipo_envs.protocol import EnvironmentSpec
from gipo_vla.policies.lora import LoraSettings
from gipo_vla.policies.memory import Work
from gipo_vla.policies.openvla_oft import OpenVlaOftSettings, TowerSettings, build
from gipo_vla.policies.openvla_oft.memory import (
    Sample,
    adapter_parameters,
    count_parameters,
    llama_block_bytes,
    plan_memory,
    sample_activation_bytes,
    tokens_per_sample,
)
from gipo_vla.policies.value_heads import ValueHeadSettings
from tests.learner import vla
from tests.policies.openvla_oft.conftest import environment_spec

GIB = 2**30
LIVE_LINEARS = ("vision", "projector", "language_model")
EVERYTHING = (*LIVE_LINEARS, "patch_embeddings", "action_head")


def small(**changes: Any) -> OpenVlaOftSettings:
    return OpenVlaOftSettings(
        architecture=replace(
            vla.ARCHITECTURE,
            image_size=56,
            dino=TowerSettings(64, 4, 4, 256),
            siglip=TowerSettings(72, 4, 4, 269),
            hidden=192,
            intermediate=512,
            layers=4,
        ),
        random_weights=True,
        proprio=True,
        **changes,
    )


def spec() -> EnvironmentSpec:
    instructions = ("open the drawer and put the puck on the shelf",)
    return environment_spec(cameras=2, proprio=8, instructions=instructions)


@pytest.mark.parametrize(
    "changes",
    [
        {"training": "full", "action_queries": "learned"},
        {"lora": LoraSettings(rank=4, towers=EVERYTHING), "value": ValueHeadSettings("token", 64)},
        {"lora": LoraSettings(rank=4)},
    ],
)
def test_counts_are_exact(changes: dict[str, Any]) -> None:
    settings = small(**changes)
    policy = build(settings, spec())
    counts = count_parameters(settings, Sample(images=2, proprio_size=8))
    groups = {name: sum(p.numel() for _, p in group) for name, group in policy.parameter_groups().items()}
    assert counts.policy == groups["policy"] and counts.value == groups["value"]
    assert counts.frozen == sum(p.numel() for p in policy.parameters() if not p.requires_grad)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        ("float32", {"training": "full"}),
        ("bfloat16", {"training": "full"}),
        ("float32", {"lora": LoraSettings(rank=8)}),
        ("bfloat16", {"lora": LoraSettings(rank=8, dtype="float32")}),
        ("bfloat16", {"lora": LoraSettings(rank=8, dtype="bfloat16")}),
        ("bfloat16", {"lora": LoraSettings(rank=8, dtype="bfloat16", towers=LIVE_LINEARS)}),
        ("bfloat16", {"lora": LoraSettings(rank=8, dtype="float32", towers=LIVE_LINEARS)}),
    ],
)
def test_activations_are_what_autograd_keeps(
    dtype: Any, changes: dict[str, Any], checkpointing: bool
) -> None:
    torch.set_num_threads(1)
    settings = small(activation_checkpointing=checkpointing, value=ValueHeadSettings(width=64), **changes)
    policy = build(settings, spec(), dtype=getattr(torch, dtype))
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}

    def kept_by(batch: int) -> int:
        observations = {
            "images": torch.zeros(batch, 2, 56, 56, 3, dtype=torch.uint8),
            "proprio": torch.zeros(batch, 8),
            "task": torch.zeros(batch, dtype=torch.int64),
        }
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            pointer = tensor.untyped_storage().data_ptr()
            if pointer not in weights:
                kept[pointer] = tensor  # holding it also keeps its address from being used again
            return tensor

        tokens = torch.zeros(batch, 8, 7, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            evaluation = policy(observations, tokens, torch.ones(batch))
        assert evaluation.log_probs.requires_grad
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    one, three = kept_by(1), kept_by(3)
    prompt = policy.prompt_ids.shape[1]
    sample = Sample(images=2, proprio_size=8, prompt_tokens=prompt)
    assert sample_activation_bytes(settings, sample, dtype) == pytest.approx((three - one) / 2, rel=0.08)
    planned = plan_memory(settings, Work(3, dtype=dtype), sample).activations
    if not checkpointing:  # else the casts of one block at a time
        assert planned == pytest.approx(three, rel=0.08)
    assert planned >= 0.9 * three


def test_published_sizes_of_7b() -> None:
    """One and two images at a prompt of 30 tokens; LoRA of rank 32."""
    one, two = Sample(), Sample(images=2)
    bfloat16 = OpenVlaOftSettings(random_weights=True, lora=LoraSettings(dtype="bfloat16"))
    assert tokens_per_sample(bfloat16, one) == 343 and tokens_per_sample(bfloat16, two) == 599
    assert adapter_parameters(bfloat16) == 79_953_920
    all_linears = OpenVlaOftSettings(random_weights=True, lora=LoraSettings(towers=LIVE_LINEARS))
    assert adapter_parameters(all_linears) == 111_286_272

    plan = plan_memory(all_linears, Work(1, dtype="bfloat16"), one)
    # 14.05 GiB with what never runs: a block of each tower, the pooling, and the head's rows of words.
    assert 13.6 < plan.frozen / GIB < 14.05
    value = count_parameters(all_linears, one).value
    # Weights, gradients and Adam's moments in float32; DeepSpeed adds a bucket and a copy of the weights.
    learner = plan.trainable + plan.gradients + plan.optimizer - 24 * value
    assert learner / GIB * 16 / 24 == pytest.approx(1.65, abs=0.01)

    assert sample_activation_bytes(bfloat16, one, "bfloat16") / GIB == pytest.approx(1.9, rel=0.1)
    # Derived as 3.35 for a last block that answers everywhere.
    assert sample_activation_bytes(bfloat16, two, "bfloat16") / GIB == pytest.approx(3.35, rel=0.12)
    float32 = OpenVlaOftSettings(random_weights=True)
    ratio = sum(llama_block_bytes(float32, 2, 4)) / sum(llama_block_bytes(bfloat16, 2, 2))
    assert 1.5 < ratio < 1.65
    checkpointed = OpenVlaOftSettings(random_weights=True, activation_checkpointing=True)
    assert sample_activation_bytes(checkpointed, one, "bfloat16") / GIB == pytest.approx(0.09, abs=0.015)
    assert sample_activation_bytes(checkpointed, two, "bfloat16") / GIB == pytest.approx(0.16, abs=0.02)


def test_ranks_share_optimizer_and_gradients() -> None:
    settings = OpenVlaOftSettings(random_weights=True)
    alone, shared, stage1 = (
        plan_memory(settings, Work(4, ranks=ranks, zero_stage=stage), Sample())
        for ranks, stage in ((1, 2), (8, 2), (8, 1))
    )
    bucket = alone.gradients // 2
    assert shared.optimizer == alone.optimizer // 8 and shared.gradients == bucket + bucket // 8
    assert plan_memory(settings, Work(4, twins=2), Sample()).twin == 2 * alone.twin
    assert shared.frozen == alone.frozen and shared.trainable == alone.trainable
    assert stage1.gradients == alone.gradients and stage1.optimizer == shared.optimizer
    # Activations are gone when the optimiser steps: the larger of the two counts.
    assert alone.stepping == 3 * alone.trainable and shared.stepping == alone.stepping // 8
    assert alone.total == sum(int(part) for part in vars(alone).values()) - alone.stepping
    small = replace(alone, activations=alone.stepping // 4, workspace=alone.stepping // 2)
    assert small.total == small.held + alone.stepping
