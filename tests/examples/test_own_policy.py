"""The policy of the examples keeps the protocol's promises, and its declarations are true."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gipo_envs import CameraSettings, EnvironmentSettings, make_spec
from gipo_envs.errors import UserError
from gipo_vla.policies.base import BuildContext, Observations, Policy, copy_trainable
from gipo_vla.policies.memory import Work
from tests.examples.conftest import Example

CAMERA = CameraSettings(names=("top",), height=32, width=32)
SPEC = make_spec(EnvironmentSettings("point_reach", "reach", observations=("images",), camera=CAMERA))


def make_policy(example: Example, **settings: Any) -> Any:
    torch.manual_seed(0)
    settings = {"channels": 4, "width": 16, "bins": 8} | settings
    policy = (
        example("own_policy").ConvolutionalSettings(**settings).build(BuildContext(SPEC, torch.device("cpu")))
    )
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return policy


def observations(count: int) -> Observations:
    shape = (count, *SPEC.observation["images"].shape)
    pixels = torch.randint(256, shape, generator=torch.Generator().manual_seed(0))
    return {"images": pixels.to(torch.uint8), "task": torch.zeros(count, dtype=torch.int64)}


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_act_and_evaluate_agree_in_any_batch(example: Example, temperature: float) -> None:
    policy = make_policy(example)
    assert isinstance(policy, Policy) and policy.normalizer is None
    batch = observations(9)
    decision = policy.act(batch, temperature, torch.Generator().manual_seed(1))
    assert decision.tokens.shape == (9, 1, 2)
    for rows in ([0], [5, 3], list(range(9))):
        part = {name: array[rows] for name, array in batch.items()}
        again = policy.evaluate(part, decision.tokens[rows], torch.full((len(rows),), temperature))
        torch.testing.assert_close(again.log_probs, decision.log_probs[rows], atol=1e-5, rtol=0)
        torch.testing.assert_close(again.values, decision.values[rows], atol=1e-5, rtol=0)
        torch.testing.assert_close(policy.value(part), decision.values[rows], atol=1e-5, rtol=0)


def test_greedy_is_the_mean_and_tokens_are_actions(example: Example) -> None:
    policy = make_policy(example)
    decision = policy.act(observations(5), 1.0, greedy=True)
    assert torch.equal(policy.encode(policy.decode(decision.tokens)), decision.tokens)
    assert decision.logits is not None
    mean = (decision.logits.softmax(-1) * policy.bin_centres).sum(-1)
    assert ((policy.decode(decision.tokens) - mean).abs() <= 1 / 7 + 1e-6).all()


def test_the_twin_is_a_copy_that_stands_still(example: Example) -> None:
    policy = make_policy(example)
    twin = policy.twin()
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert twin.bin_centres.data_ptr() == policy.bin_centres.data_ptr()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 1.0
    batch = observations(3)
    assert not torch.equal(twin.value(batch), policy.value(batch))
    copy_trainable(policy, twin)
    assert torch.equal(twin.value(batch), policy.value(batch))


def test_the_value_has_its_own_parameters_and_moves_no_features(example: Example) -> None:
    policy = make_policy(example)
    groups = {key: {name for name, _ in named} for key, named in policy.parameter_groups().items()}
    assert groups["policy"] | groups["value"] == {name for name, _ in policy.named_parameters()}
    assert groups["value"] and all(name.startswith("critic") for name in groups["value"])
    tokens = torch.zeros(3, 1, 2, dtype=torch.int64)
    policy.evaluate(observations(3), tokens, torch.ones(3)).values.sum().backward()
    moved = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert moved == groups["value"]


def test_declared_memory_and_arithmetic_are_those_of_the_network(example: Example) -> None:
    policy = make_policy(example, channels=16, width=64, bins=32)
    settings = example("own_policy").ConvolutionalSettings(width=64)
    work = Work(micro_batch=32, act_batch=16)
    shape = settings.token_shape(SPEC)
    assert (shape.chunk, shape.action_dims, shape.bins) == (policy.chunk, policy.action_dims, policy.bins)
    memory = settings.memory(work, SPEC)
    assert memory.trainable == memory.twin == 4 * sum(p.numel() for p in policy.parameters())

    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch, tokens = observations(32), torch.zeros(32, 1, 2, dtype=torch.int64)
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        policy.evaluate(batch, tokens, torch.ones(32))
    assert math.isclose(settings.arithmetic(work, SPEC).act, counter.get_total_flops() / 32, rel_tol=0.1)
    assert 0.6 < memory.activations / sum(kept.values()) < 1.4


def test_refuses_an_environment_without_images_and_bad_sizes(example: Example) -> None:
    settings = example("own_policy").ConvolutionalSettings
    blind = make_spec(EnvironmentSettings("point_reach", "reach"))
    with pytest.raises(UserError, match=r"env\.observations"):
        settings().memory(Work(1), blind)
    with pytest.raises(UserError, match=r"policy\.bins"):
        settings(bins=1)
