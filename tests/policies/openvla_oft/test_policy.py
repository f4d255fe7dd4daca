"""The policy protocol: act and evaluate agree, padding and batches do not matter, twins share and lag."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gipo_envs.protocol import EnvironmentSpec
from gipo_vla.policies.base import Policy, copy_trainable
from gipo_vla.policies.lora import LoraSettings, adapter_parameters
from gipo_vla.policies.openvla_oft import OpenVlaOftSettings, build
from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
from gipo_vla.policies.value_heads import ValueHeadSettings

Make = Callable[..., Any]
ALL_TOWERS = ("vision", "patch_embeddings", "projector", "language_model", "action_head")
TRAININGS: dict[str, dict[str, Any]] = {
    "full": {"training": "full"},
    "lora": {"training": "lora", "lora": LoraSettings(rank=4)},
    "lora-all": {"training": "lora", "lora": LoraSettings(rank=4, towers=ALL_TOWERS)},
    "checkpointing": {"training": "lora", "lora": LoraSettings(rank=4), "activation_checkpointing": True},
}


def make_policy(
    settings: OpenVlaOftSettings, spec: EnvironmentSpec, seed: int = 0, **changes: Any
) -> OpenVlaOftPolicy:
    """A policy whose adapters and value head are not at their neutral start."""
    torch.manual_seed(seed)
    policy = build(dataclasses.replace(settings, **changes), spec)
    with torch.no_grad():
        for parameter in adapter_parameters(policy.network):
            parameter.normal_(std=0.2)
        policy.network.action_head.requires_grad_(False)
        for name, parameter in policy.named_parameters():
            if name.startswith("value_head.") or "action_head" in name:
                parameter.normal_(std=0.3)
    if changes.get("training") == "full":
        policy.network.action_head.requires_grad_(True)
    return policy


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_act_and_evaluate_agree(
    tiny_settings: OpenVlaOftSettings,
    make_spec: Make,
    make_observations: Make,
    training: str,
    temperature: float,
) -> None:
    spec = make_spec(cameras=2, proprio=8)
    policy = make_policy(tiny_settings, spec, proprio=True, **TRAININGS[training])
    assert isinstance(policy, Policy)
    observations = make_observations(spec, 5)
    decision = policy.act(observations, temperature, torch.Generator().manual_seed(1))
    assert decision.tokens.shape == (5, 4, 7) and decision.tokens.dtype == torch.int64
    assert decision.tokens.min() >= 0 and decision.tokens.max() < 256
    evaluation = policy.evaluate(observations, decision.tokens, torch.full((5,), temperature))
    assert evaluation.log_probs.dtype == torch.float32 and evaluation.log_probs.requires_grad
    assert (evaluation.log_probs - decision.log_probs).abs().max() <= 1e-4
    assert (evaluation.values - decision.values).abs().max() <= 1e-4
    assert (policy.value(observations) - decision.values).abs().max() <= 1e-4
    assert decision.log_probs.std() > 0.1, "a constant would agree with anything"
    logits = evaluation.logits
    assert logits is not None and logits.shape == (5, 4, 7, 256)
    torch.testing.assert_close(evaluation.entropies, torch.distributions.Categorical(logits=logits).entropy())
    unscaled = policy.evaluate(observations, decision.tokens, torch.ones(5)).logits
    assert unscaled is not None
    torch.testing.assert_close(logits * temperature, unscaled)


def test_temperature_is_per_sample(
    tiny_settings: OpenVlaOftSettings, make_spec: Make, make_observations: Make
) -> None:
    spec = make_spec()
    policy = make_policy(tiny_settings, spec)
    observations = make_observations(spec, 2)
    tokens = policy.act(observations, 1.0, torch.Generator().manual_seed(0)).tokens
    mixed = policy.evaluate(observations, tokens, torch.tensor([1.0, 1.6])).log_probs
    for row, temperature in enumerate((1.0, 1.6)):
        alone = policy.evaluate(observations, tokens, torch.full((2,), temperature)).log_probs
        torch.testing.assert_close(mixed[row], alone[row])


def test_greedy_takes_the_most_likely_tokens(
    tiny_settings: OpenVlaOftSettings, make_spec: Make, make_observations: Make
) -> None:
    spec = make_spec()
    policy = make_policy(tiny_settings, spec)
    observations = make_observations(spec, 2)
    decision = policy.act(observations, 1.6, greedy=True)
    assert decision.logits is not None
    assert torch.equal(decision.tokens, decision.logits.argmax(-1))
    again = policy.act(observations, 1.6, torch.Generator().manual_seed(5), greedy=True)
    assert torch.equal(decision.tokens, again.tokens)


@torch.no_grad()
def test_log_probs_do_not_depend_on_the_batch_or_on_padding(
    tiny_settings: OpenVlaOftSettings, make_spec: Make, make_observations: Make
) -> None:
    long = "pick up the nut and place it onto the peg that is behind the wall"
    spec = make_spec(instructions=("open the drawer", long))
    policy = make_policy(tiny_settings, spec)
    observations = make_observations(spec, 6)
    observations["task"] = torch.tensor([0, 1, 0, 1, 0, 1])
    tokens = policy.act(observations, 1.0, torch.Generator().manual_seed(0)).tokens
    together = policy.evaluate(observations, tokens, torch.ones(6))
    for row in range(6):
        one = {name: value[row : row + 1] for name, value in observations.items()}
        alone = policy.evaluate(one, tokens[row : row + 1], torch.ones(1))
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.values[0], together.values[row], atol=1e-5, rtol=1e-5)

    assert policy.pads_prompts
    short = {name: value[::2] for name, value in observations.items()}
    padded = policy.evaluate(short, tokens[::2], torch.ones(3)).log_probs
    policy.set_instructions(spec.instructions[:1])
    assert not policy.pads_prompts
    unpadded = policy.evaluate(short, tokens[::2], torch.ones(3)).log_probs
    torch.testing.assert_close(padded, unpadded, atol=1e-5, rtol=0)
    policy.set_instructions(("close the drawer",))
    other = policy.evaluate(short, tokens[::2], torch.ones(3)).log_probs
    assert (other - unpadded).abs().max() > 1e-4, "the instruction must matter"


@pytest.mark.parametrize("training", TRAININGS)
def test_twins_share_frozen_storage_and_lag_until_synced(
    tiny_settings: OpenVlaOftSettings, make_spec: Make, make_observations: Make, training: str
) -> None:
    spec = make_spec()
    learner = make_policy(tiny_settings, spec, **TRAININGS[training])
    behaviour = learner.twin()
    pointers = {name: parameter.data_ptr() for name, parameter in learner.named_parameters()}
    shared = 0
    for name, parameter in behaviour.named_parameters():
        trainable = dict(learner.named_parameters())[name].requires_grad
        assert (parameter.data_ptr() == pointers[name]) is not trainable, name
        shared += not trainable
    assert shared > 0 or training == "full"
    for name, buffer in behaviour.named_buffers():
        assert buffer.data_ptr() == dict(learner.named_buffers())[name].data_ptr()

    observations = make_observations(spec, 3)
    tokens = learner.act(observations, 1.0, torch.Generator().manual_seed(0)).tokens
    temperature = torch.ones(3)

    def results(policy: OpenVlaOftPolicy) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            evaluation = policy.evaluate(observations, tokens, temperature)
        return evaluation.log_probs, evaluation.values

    before = results(behaviour)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(before, results(learner), strict=True))
    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    evaluation = learner(observations, tokens, temperature)
    (evaluation.values.square().mean() - evaluation.log_probs.mean()).backward()
    assert all(p.grad is not None for p in parameters if p.requires_grad) or training == "full"
    optimizer.step()
    after = results(behaviour)
    assert all(torch.equal(first, second) for first, second in zip(before, after, strict=True))
    moved = results(learner)
    assert all((first - second).abs().max() > 1e-4 for first, second in zip(moved, before, strict=True))
    copy_trainable(learner, behaviour)
    assert all(torch.equal(first, second) for first, second in zip(results(behaviour), moved, strict=True))
    assert {name: p.data_ptr() for name, p in learner.named_parameters()} == pointers


def test_parameter_groups_cover_what_trains(tiny_settings: OpenVlaOftSettings, make_spec: Make) -> None:
    policy = make_policy(tiny_settings, make_spec(), **TRAININGS["lora-all"])
    groups = policy.parameter_groups()
    names = [name for group in groups.values() for name, _ in group]
    assert sorted(names) == sorted(name for name, p in policy.named_parameters() if p.requires_grad)
    assert all("lora_" in name for name, _ in groups["policy"])
    assert groups["value"] and all(name.startswith("value_head.") for name, _ in groups["value"])


@pytest.mark.parametrize("kind", ["attention", "token"])
@pytest.mark.parametrize("detach", [True, False])
def test_value_loss_reaches_the_features_only_when_asked(
    tiny_settings: OpenVlaOftSettings, make_spec: Make, make_observations: Make, kind: Any, detach: bool
) -> None:
    spec = make_spec()
    value = ValueHeadSettings(kind=kind, width=16, heads=2, detach=detach)
    policy = make_policy(tiny_settings, spec, value=value, **TRAININGS["lora"])
    observations = make_observations(spec, 2)
    tokens = torch.zeros(2, 4, 7, dtype=torch.int64)
    policy(observations, tokens, torch.ones(2)).values.sum().backward()
    groups = policy.parameter_groups()
    assert all(p.grad is not None for _, p in groups["value"])
    assert any(p.grad is not None for _, p in groups["policy"]) is not detach


def test_checkpointing_gives_the_same_gradients(
    tiny_settings: OpenVlaOftSettings, make_spec: Make, make_observations: Make
) -> None:
    spec = make_spec()
    observations = make_observations(spec, 2)
    tokens = torch.zeros(2, 4, 7, dtype=torch.int64)
    gradients = []
    saved = []
    lora = LoraSettings(rank=4, towers=ALL_TOWERS)
    for checkpointing in (False, True):
        policy = make_policy(tiny_settings, spec, activation_checkpointing=checkpointing, lora=lora)
        kept: dict[int, int] = {}
        weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}

        def keep(tensor: Tensor, kept: dict[int, int] = kept, weights: set[int] = weights) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = policy(observations, tokens, torch.ones(2)).log_probs.sum()
        saved.append(sum(kept.values()))
        loss.backward()
        gradients.append([p.grad for p in adapter_parameters(policy.network)])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)
    assert saved[1] < saved[0] / 2


def test_rotary_frequencies_and_heads_stay_in_float32(
    tiny_settings: OpenVlaOftSettings, make_spec: Make, make_observations: Make
) -> None:
    spec = make_spec(proprio=4)
    torch.manual_seed(0)
    settings = dataclasses.replace(tiny_settings, proprio=True)
    policy = build(settings, spec, dtype=torch.bfloat16)
    exact = policy.network.language_model.rotary_emb.inv_freq.clone()
    reference = build(settings, spec).network.language_model.rotary_emb.inv_freq
    assert torch.equal(exact, reference)
    for cast in (policy, policy.to(torch.bfloat16), policy.bfloat16(), policy.twin().half()):
        assert cast.network.language_model.rotary_emb.inv_freq.dtype == torch.float32
        assert torch.equal(cast.network.language_model.rotary_emb.inv_freq, exact)
        assert cast.network.action_head.weight.dtype == torch.float32
        assert {p.dtype for p in cast.value_head.parameters()} == {torch.float32}
        assert cast.action_scaling.centres.dtype == torch.float32
        assert cast.proprio_scaling is not None and cast.proprio_scaling.low.dtype == torch.float32
    decision = build(settings, spec, dtype=torch.bfloat16).act(make_observations(spec, 2), 1.0)
    assert decision.log_probs.dtype == torch.float32 and decision.values.dtype == torch.float32


@pytest.mark.parametrize("adapters", ["auto", "float32", "bfloat16"])
def test_bfloat16_base_with_either_adapter(
    tiny_settings: OpenVlaOftSettings, make_spec: Make, make_observations: Make, adapters: Any
) -> None:
    spec = make_spec()
    torch.manual_seed(0)
    settings = dataclasses.replace(tiny_settings, lora=LoraSettings(rank=4, dtype=adapters))
    policy = build(settings, spec, dtype=torch.bfloat16)
    assert {p.dtype for p in adapter_parameters(policy.network)} == {torch.float32}
    assert policy.network.projector.fc1.weight.dtype == torch.bfloat16
    observations = make_observations(spec, 2)
    tokens = policy.act(observations, 1.0, torch.Generator().manual_seed(0)).tokens
    policy(observations, tokens, torch.ones(2)).log_probs.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter_parameters(policy.network))


def test_tokens_follow_the_action_size(
    tiny_settings: OpenVlaOftSettings, make_spec: Make, make_observations: Make
) -> None:
    """Meta-World has 4 dimensions, and without statistics its gripper is left alone."""
    spec = make_spec(action_size=4)
    policy = make_policy(tiny_settings, spec)
    decision = policy.act(make_observations(spec, 2), 1.0, torch.Generator().manual_seed(0))
    assert decision.tokens.shape == (2, 4, 4)
    actions = policy.decode(decision.tokens)
    assert actions.shape == (2, 4, 4) and actions.dtype == torch.float32 and actions.abs().max() <= 1
    torch.testing.assert_close(policy.decode(policy.encode(actions)), actions)
    assert not policy.action_scaling.flips_gripper
    assert policy.decode(torch.tensor([[[0, 64, 128, 255]]]))[0, 0, 0] > 0.99


def test_images_proprio_and_queries_matter(
    tiny_settings: OpenVlaOftSettings, make_spec: Make, make_observations: Make
) -> None:
    spec = make_spec(cameras=2, proprio=3)
    policy = make_policy(tiny_settings, spec, proprio=True, action_queries="learned", training="full")
    observations = make_observations(spec, 1)
    with torch.no_grad():
        reference = policy.states(observations)
        for name in ("images", "proprio"):
            changed = dict(observations)
            changed[name] = changed[name].flip(1)
            assert (policy.states(changed) - reference).abs().max() > 1e-4, name
        assert policy.network.action_queries is not None
        policy.network.action_queries.zero_()
        assert (policy.states(observations) - reference).abs().max() > 1e-4


@pytest.mark.slow
def test_compiled_language_model_agrees(
    tiny_settings: OpenVlaOftSettings, make_spec: Make, make_observations: Make
) -> None:
    spec = make_spec()
    observations = make_observations(spec, 2)
    tokens = torch.zeros(2, 4, 7, dtype=torch.int64)
    plain = make_policy(tiny_settings, spec).evaluate(observations, tokens, torch.ones(2))
    compiled = make_policy(tiny_settings, spec, compile=True)
    for policy in (compiled, compiled.twin()):
        evaluation = policy.evaluate(observations, tokens, torch.ones(2))
        torch.testing.assert_close(evaluation.log_probs, plain.log_probs, atol=1e-4, rtol=0)
    compiled.evaluate(observations, tokens, torch.ones(2)).log_probs.sum().backward()
