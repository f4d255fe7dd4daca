"""The network asked for its instruction: causal, by its own frozen weights; and its features."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gipo_envs.errors import UserError
from gipo_vla.credit import CreditContext, GroupEpisode
from gipo_vla.credit.information_gain.instruction import InstructionScorerSettings
from gipo_vla.policies.base import HasFeatures, Policy, ReadsInstructions
from gipo_vla.policies.lora import LoraSettings, adapter_parameters
from gipo_vla.policies.openvla_oft import OpenVlaOftSettings, build
from gipo_vla.policies.openvla_oft.instruction import instruction_ids, mean_log_prob
from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy

Make = Callable[..., Any]
TOWERS = ("vision", "patch_embeddings", "projector", "language_model", "action_head")


@pytest.fixture
def speaking(tiny_settings: OpenVlaOftSettings, make_spec: Make) -> OpenVlaOftPolicy:
    torch.manual_seed(0)
    lora = LoraSettings(rank=4, towers=TOWERS)  # type: ignore[arg-type]
    policy = build(dataclasses.replace(tiny_settings, full_vocabulary=True, lora=lora), make_spec())
    with torch.no_grad():
        policy.network.action_head.get_parameter("base_layer.weight").normal_(std=0.3)
    return policy


def test_it_is_the_mean_over_the_tokens_one_after_the_other(
    speaking: OpenVlaOftPolicy, make_spec: Make, make_observations: Make
) -> None:
    """Adding a word at the end leaves the log-probs of the words before it: nothing looks ahead."""
    observations = make_observations(make_spec(), 3)
    pixels = speaking.pixels(observations["images"])
    assert speaking.tokenizer is not None
    ids = instruction_ids(speaking.tokenizer, "Open the drawer")
    assert len(ids) >= 3
    totals = [mean_log_prob(speaking.network, pixels, ids[:n]) * n for n in range(1, len(ids) + 1)]
    steps = torch.diff(torch.stack(totals), dim=0)
    assert (steps < 0).all(), "each further token costs something, and changes nothing before it"
    again = mean_log_prob(speaking.network, pixels[[1]], ids)
    torch.testing.assert_close(again[0], totals[-1][1] / len(ids), atol=1e-5, rtol=0)


def test_every_observation_is_asked_for_its_own_instruction(
    speaking: OpenVlaOftPolicy, make_spec: Make, make_observations: Make
) -> None:
    assert isinstance(speaking, ReadsInstructions)
    observations = make_observations(make_spec(), 4)
    observations["task"] = torch.tensor([0, 1, 0, 1])
    both = speaking.instruction_log_probs(observations)
    for row in range(4):
        single = {name: tensor[[row]] for name, tensor in observations.items()}
        torch.testing.assert_close(speaking.instruction_log_probs(single)[0], both[row], atol=1e-5, rtol=0)


def test_adapters_do_not_speak(speaking: OpenVlaOftPolicy, make_spec: Make, make_observations: Make) -> None:
    """What training changes changes nothing here, and afterwards the adapters act as before."""
    observations = make_observations(make_spec(), 2)
    tokens = torch.zeros(2, 4, 7, dtype=torch.int64)
    before = speaking.instruction_log_probs(observations)
    with torch.no_grad():
        for parameter in adapter_parameters(speaking.network):
            parameter.normal_(std=0.2)
    acted = speaking.evaluate(observations, tokens, torch.ones(2)).log_probs
    assert torch.equal(speaking.instruction_log_probs(observations), before)
    after = speaking.evaluate(observations, tokens, torch.ones(2)).log_probs
    assert torch.equal(acted, after)
    assert all(parameter.requires_grad for parameter in adapter_parameters(speaking.network))


def context(policy: Policy, spec: Any) -> CreditContext:
    return CreditContext(spec, policy, torch.device("cpu"), 0)


@pytest.mark.parametrize("training", ["lora", "full"])
def test_the_scorer_never_changes(
    tiny_settings: OpenVlaOftSettings, make_spec: Make, make_observations: Make, training: Any
) -> None:
    spec = make_spec()
    policy = build(dataclasses.replace(tiny_settings, full_vocabulary=True, training=training), spec)
    scorer = InstructionScorerSettings().build(context(policy, spec))
    seen = {name: tensor.numpy() for name, tensor in make_observations(spec, 5).items()}
    seen["task"] = np.zeros(5, np.int64)
    one = np.ones((4, 1), bool)
    episode = GroupEpisode(0, one.astype(np.float32), one[:, 0].astype(int), ~one, False, observations=seen)
    (before,) = scorer.score([episode])  # type: ignore[misc]
    assert before.shape == (5,) and (before > 0).all() and (before < 1).all()
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    scorer.refresh(lambda total: total)
    (after,) = scorer.score([episode])  # type: ignore[misc]
    np.testing.assert_array_equal(after, before)
    other = InstructionScorerSettings().build(context(policy, spec))
    other.load_state_dict(scorer.state_dict())
    np.testing.assert_array_equal(other.score([episode])[0], before)  # type: ignore[index]


def test_a_network_that_speaks_actions_only_is_refused(
    tiny_settings: OpenVlaOftSettings, make_spec: Make
) -> None:
    spec = make_spec()
    with pytest.raises(UserError, match=r"policy\.full_vocabulary=true"):
        InstructionScorerSettings().build(context(build(tiny_settings, spec), spec))


def test_features_tell_pictures_apart(
    tiny_settings: OpenVlaOftSettings, make_spec: Make, make_observations: Make
) -> None:
    spec = make_spec(cameras=2)
    policy = build(tiny_settings, spec)
    assert isinstance(policy, HasFeatures)
    observations = make_observations(spec, 3)
    features = policy.features(observations)
    assert features.shape == (3, policy.feature_size) and features.dtype == torch.float32
    assert not features.requires_grad and (features[0] - features[1]).abs().max() > 1e-4
    single = policy.features({name: tensor[[2]] for name, tensor in observations.items()})
    torch.testing.assert_close(single[0], features[2], atol=1e-5, rtol=0)
