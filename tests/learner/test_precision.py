"""Whatever a network computes in: what trains is float32, and stays so in the hands of the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gipo_envs.errors import UserError
from gipo_vla.credit.gae import GaeSettings
from gipo_vla.credit.normalization import AdvantageNormalizer
from gipo_vla.learner.learner import Learner
from gipo_vla.objectives.gipo import GipoSettings
from gipo_vla.objectives.regularizers import RegularizerSettings
from gipo_vla.policies.base import copy_trainable
from gipo_vla.policies.lora import LoraSettings
from gipo_vla.policies.numerical_floor import log_ratio_floor
from gipo_vla.policies.openvla_oft import build
from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
from gipo_vla.replay.segment import SegmentBatch
from tests.learner import vla

CPU = torch.device("cpu")
CASES: dict[str, dict[str, Any]] = {
    "full": {"training": "full", "proprio": True},
    "full, checkpointed": {"training": "full", "activation_checkpointing": True},
    "lora": {"lora": LoraSettings(rank=4)},
    "lora, all towers": {"lora": LoraSettings(rank=4, towers=vla.ALL_TOWERS)},  # type: ignore[arg-type]
    "lora, bfloat16": {"lora": LoraSettings(rank=4, dtype="bfloat16")},
    "lora, float32": {"lora": LoraSettings(rank=4, dtype="float32")},
}


def make_learner(policy: OpenVlaOftPolicy, **settings: Any) -> Learner:
    return Learner(
        policy,
        replace(vla.LEARNER, **settings),
        GipoSettings(),
        RegularizerSettings(),
        GaeSettings().build(),
        AdvantageNormalizer("running"),
        CPU,
        10,
        1.0,
    )


@pytest.fixture(params=CASES)
def policy(request: pytest.FixtureRequest) -> OpenVlaOftPolicy:
    own = vla.settings(**CASES[request.param])
    torch.manual_seed(0)
    return build(own, vla.spec(own), CPU, torch.bfloat16)


@pytest.fixture(params=[1, 2], ids=["stage1", "stage2"])
def learner(process_group: None, policy: OpenVlaOftPolicy, request: pytest.FixtureRequest) -> Learner:
    return make_learner(policy, zero_stage=request.param)


def dtypes(module: nn.Module) -> dict[str, torch.dtype]:
    return {name: parameter.dtype for name, parameter in module.named_parameters()}


def run(learner: Learner, segments: SegmentBatch) -> dict[str, float]:
    update = learner.begin(segments, 1)
    for index in range(learner.micro_batches):
        learner.micro_step(update, index)
    return learner.end(update)


def test_what_trains_is_float32_and_what_does_not_is_not(policy: OpenVlaOftPolicy) -> None:
    trained = {p.dtype for p in policy.parameters() if p.requires_grad}
    assert trained == {torch.float32}
    kept = {"network.action_head.base_layer.weight", "network.action_head.weight"}  # float32 for log-probs
    frozen = {p.dtype for name, p in policy.named_parameters() if not p.requires_grad and name not in kept}
    assert frozen == (set() if policy.settings.training == "full" else {torch.bfloat16})
    assert policy.network.dtype == torch.bfloat16


def test_the_forward_computes_in_bfloat16(policy: OpenVlaOftPolicy) -> None:
    seen = {}
    layer = policy.network.language_model.layers[0]
    for name in ("self_attn.o_proj", "mlp.down_proj", "input_layernorm"):
        layer.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: out.dtype})
        )
    policy.act(vla.trial(policy.settings).observations(2), 1.0)
    assert set(seen.values()) == {torch.bfloat16} and len(seen) == 3


def test_dtypes_survive_the_engine_and_fit_the_twin(policy: OpenVlaOftPolicy, process_group: None) -> None:
    twin, before = policy.twin(), dtypes(policy)
    learner = make_learner(policy)
    run(learner, vla.segments(policy.settings))
    assert dtypes(policy) == before == dtypes(twin)
    zero = learner.engine.optimizer
    flat = {tensor.dtype for tensor in (*zero.bit16_groups_flat, *zero.single_partition_of_fp32_groups)}
    assert flat == {torch.float32} == {zero.gradient_accumulation_dtype, zero.communication_data_type}


def test_an_update_that_is_not_finite_is_skipped(learner: Learner) -> None:
    own = learner.policy.settings  # type: ignore[attr-defined]
    assert run(learner, vla.segments(own))["learner/skipped"] == 0
    before = {name: p.detach().clone() for name, p in learner.policy.named_parameters()}  # type: ignore[attr-defined]
    spoiled = vla.segments(own, seed=1)
    spoiled.log_probs[0, 0, 0, 0] = np.nan
    assert run(learner, spoiled) == {"learner/skipped": 1.0}
    assert learner.version == 1
    for name, parameter in learner.policy.named_parameters():  # type: ignore[attr-defined]
        assert torch.equal(parameter, before[name]), name
    assert run(learner, vla.segments(own, seed=2))["learner/skipped"] == 0


def test_gradients_are_not_rounded_to_bfloat16(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rounded gradient has the last 16 bits of every number empty."""
    rounded: dict[str, float] = {}
    step = type(learner.optimizer).step

    def look(self: Any, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad[parameter.grad != 0]
                rounded[group["name"]] = float((gradient == gradient.bfloat16().float()).float().mean())
        step(self, closure)

    monkeypatch.setattr(type(learner.optimizer), "step", look)
    run(learner, vla.segments(learner.policy.settings))  # type: ignore[attr-defined]
    assert rounded["value"] < 0.1
    # Gradients of weights that are cast when used come out of a bfloat16 product, added up in float32.
    assert rounded["policy"] < 0.6


def test_the_floor_is_that_of_the_arithmetic(learner: Learner) -> None:
    policy = learner.policy
    assert isinstance(policy, OpenVlaOftPolicy)
    twin = policy.twin()
    run(learner, vla.segments(policy.settings))
    observations = vla.trial(policy.settings).observations(6)
    assert log_ratio_floor(twin, policy, observations, 6, 1.6).max() > 0, "two versions, before the copy"
    copy_trainable(policy, twin)
    assert log_ratio_floor(twin, policy, observations, 6, 1.6).max() == 0, "the same batch, the same numbers"
    assert log_ratio_floor(twin, policy, observations, 2, 1.6).max() <= 2e-2


def test_the_floor_sees_a_learner_of_another_dtype() -> None:
    own = vla.settings(training="full")
    torch.manual_seed(0)
    policy = build(own, vla.spec(own), CPU, torch.bfloat16)
    other = build(own, vla.spec(own), CPU, torch.float32)
    copy_trainable(policy, other)
    observations = vla.trial(own).observations(4)
    assert log_ratio_floor(policy, other, observations, 4, 1.6).max() > 1e-5
    assert log_ratio_floor(policy, policy, observations, 4, 1.6).max() == 0


def test_the_engine_refuses_what_trains_in_another_dtype(
    policy: OpenVlaOftPolicy, process_group: None
) -> None:
    policy.value_head.output.bias.data = policy.value_head.output.bias.data.bfloat16()
    with pytest.raises(UserError, match=r"value_head\.output\.bias trains in bfloat16.*float32"):
        make_learner(policy)
