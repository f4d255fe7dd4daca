"""The state policy keeps the protocol's promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from gipo_envs import EnvironmentSettings, EnvironmentSpec, make_spec
from gipo_envs.errors import UserError
from gipo_vla.objectives.regularizers import exact_kl
from gipo_vla.policies.base import Observations, Policy, copy_trainable
from gipo_vla.policies.bin_heads import HeadName
from gipo_vla.policies.mlp import MlpPolicy, MlpSettings, bag_of_words
from gipo_vla.policies.normalization import moments

MakePolicy = Callable[..., MlpPolicy]


@pytest.fixture
def make_policy() -> MakePolicy:
    """A small policy with weights large enough to have opinions."""

    def make(task: str | tuple[str, ...] = "reach", **settings: Any) -> MlpPolicy:
        spec = make_spec(EnvironmentSettings("point_reach", task))
        torch.manual_seed(0)
        policy = MlpPolicy(MlpSettings(**{"hidden": (24,), "bins": 32} | settings), spec)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        return policy

    return make


def observations(count: int, tasks: int = 1, seed: int = 0) -> Observations:
    generator = torch.Generator().manual_seed(seed)
    return {
        "state": torch.randn(count, 10, generator=generator),
        "task": torch.randint(tasks, (count,), generator=generator),
    }


def rows(batch: Observations, index: Any) -> Observations:
    return {name: tensor[index] for name, tensor in batch.items()}


def test_is_a_policy(make_policy: MakePolicy) -> None:
    assert isinstance(make_policy(), Policy)


@pytest.mark.parametrize("temperature", [1.0, 1.6])
@pytest.mark.parametrize(
    "task, settings",
    [
        ("reach", {}),
        (("reach", "push"), {"chunk": 3}),
        ("reach", {"head": "ordinal", "chunk": 3}),
        ("reach", {"head": "interpolated", "activation": "silu"}),
        ("reach", {"head": "gaussian"}),
        (("reach", "push"), {"head": "gaussian", "chunk": 3, "layer_norm": True, "activation": "relu"}),
    ],
    ids=str,
)
def test_act_and_evaluate_agree_in_any_batch(
    make_policy: MakePolicy, task: str | tuple[str, ...], settings: dict[str, Any], temperature: float
) -> None:
    policy, chunk = make_policy(task, **settings), settings.get("chunk", 1)
    policy.normalizer.update(
        torch.tensor(9.0).double(), torch.randn(10).double(), torch.full((10,), 30.0).double()
    )
    batch = observations(33, tasks=1 if task == "reach" else 2)
    decision = policy.act(batch, temperature, torch.Generator().manual_seed(1))
    assert decision.tokens.shape == decision.log_probs.shape == (33, chunk, 2)
    temperatures = torch.full((33,), temperature)

    whole = policy.evaluate(batch, decision.tokens, temperatures)
    torch.testing.assert_close(whole.log_probs, decision.log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.values, decision.values, atol=1e-5, rtol=0)
    torch.testing.assert_close(policy.value(batch), decision.values, atol=1e-5, rtol=0)
    assert decision.logits is not None and whole.logits is not None
    torch.testing.assert_close(whole.logits, decision.logits, atol=1e-5, rtol=0)
    for index in ([0], [32], [5, 3], list(range(7, 31))):  # alone, in pairs, in another order
        part = policy.evaluate(rows(batch, index), decision.tokens[index], temperatures[index])
        torch.testing.assert_close(part.log_probs, decision.log_probs[index], atol=1e-5, rtol=0)
        torch.testing.assert_close(part.values, decision.values[index], atol=1e-5, rtol=0)


def test_temperature_of_each_row_is_its_own(make_policy: MakePolicy) -> None:
    policy = make_policy()
    batch = observations(6)
    tokens = policy.act(batch, 1.0, torch.Generator().manual_seed(0)).tokens
    mixed = policy.evaluate(batch, tokens, torch.tensor([1.0, 1.6, 0.5, 1.0, 1.6, 0.5]))
    for index, temperature in enumerate((1.0, 1.6, 0.5)):
        alike = policy.evaluate(batch, tokens, torch.full((6,), temperature))
        torch.testing.assert_close(mixed.log_probs[index::3], alike.log_probs[index::3], atol=1e-5, rtol=0)
        torch.testing.assert_close(mixed.entropies[index::3], alike.entropies[index::3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", get_args(HeadName))
def test_log_probs_and_entropies_are_those_of_the_logits(make_policy: MakePolicy, head: HeadName) -> None:
    policy = make_policy(head=head)
    batch, tokens = observations(4), torch.randint(32, (4, 1, 2))
    out = policy.evaluate(batch, tokens, torch.full((4,), 1.6))
    probabilities = torch.softmax(out.logits.double(), -1)  # type: ignore[union-attr]
    expected = torch.gather(probabilities, -1, tokens[..., None]).squeeze(-1).log()
    torch.testing.assert_close(out.log_probs.double(), expected, atol=1e-5, rtol=0)
    entropies = -(probabilities * probabilities.log()).sum(-1)
    torch.testing.assert_close(out.entropies.double(), entropies, atol=1e-5, rtol=0)


def test_samples_follow_the_probabilities(make_policy: MakePolicy) -> None:
    policy = make_policy(bins=8)
    one = observations(1)
    many = {name: tensor.expand(20_000, *tensor.shape[1:]) for name, tensor in one.items()}
    tokens = policy.act(many, 1.6, torch.Generator().manual_seed(0)).tokens
    probabilities = torch.softmax(policy.act(one, 1.6).logits[0], -1)  # type: ignore[index]
    for dimension in range(2):
        counts = torch.bincount(tokens[:, 0, dimension], minlength=8) / 20_000
        torch.testing.assert_close(counts, probabilities[0, dimension], atol=0.02, rtol=0)


def test_the_generator_alone_decides_the_sample(make_policy: MakePolicy) -> None:
    policy = make_policy()
    batch = observations(16)
    torch.manual_seed(1)
    first = policy.act(batch, 1.0, torch.Generator().manual_seed(5)).tokens
    torch.manual_seed(2)
    second = policy.act(batch, 1.0, torch.Generator().manual_seed(5)).tokens
    assert torch.equal(first, second)


@pytest.mark.parametrize("head", ["independent", "gaussian"])
@pytest.mark.parametrize("greedy", ["mean", "mode"])
def test_greedy(make_policy: MakePolicy, greedy: str, head: HeadName) -> None:
    policy = make_policy(greedy=greedy, head=head)
    batch = observations(40)
    decision = policy.act(batch, 1.3, greedy=True)
    again = policy.act(batch, 1.3, greedy=True)
    assert torch.equal(decision.tokens, again.tokens)
    probabilities = torch.softmax(decision.logits, -1)  # type: ignore[arg-type]
    if greedy == "mode":
        assert torch.equal(decision.tokens, probabilities.argmax(-1))
    else:
        mean = (probabilities * torch.linspace(-1, 1, 32)).sum(-1)
        assert (policy.decode(decision.tokens) - mean).abs().max() <= 1 / 31 + 1e-6, "half a bin"
    expected = policy.evaluate(batch, decision.tokens, torch.full((40,), 1.3)).log_probs
    torch.testing.assert_close(decision.log_probs, expected, atol=1e-5, rtol=0)


def test_decode_spans_the_range(make_policy: MakePolicy) -> None:
    policy = make_policy(bins=5, chunk=2)
    actions = policy.decode(torch.tensor([[[0, 4], [2, 1]]]))
    assert actions.dtype == torch.float32
    torch.testing.assert_close(actions, torch.tensor([[[-1.0, 1.0], [0.0, -0.5]]]))


def test_twin_shares_the_normalizer_and_owns_the_rest(make_policy: MakePolicy) -> None:
    policy = make_policy()
    twin = policy.twin()
    batch = observations(8)
    assert twin.normalizer.mean is policy.normalizer.mean
    own = {parameter.data_ptr() for parameter in policy.parameters()}
    assert not own & {parameter.data_ptr() for parameter in twin.parameters()}
    assert all(parameter.requires_grad for parameter in policy.parameters())
    assert not any(parameter.requires_grad for parameter in twin.parameters())

    before = twin.value(batch)
    assert torch.equal(before, policy.value(batch))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1
    assert torch.equal(twin.value(batch), before), "the twin stays until it is synchronised"
    copy_trainable(policy, twin)
    assert torch.equal(twin.value(batch), policy.value(batch))
    assert not own & {parameter.data_ptr() for parameter in twin.parameters()}

    policy.normalizer.update(*moments(torch.randn(9, 10)))
    assert torch.equal(twin.value(batch), policy.value(batch)), "both see the same inputs"


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_parameter_groups_are_disjoint_and_complete(make_policy: MakePolicy, shared: int) -> None:
    policy = make_policy(hidden=(24, 12), shared_layers=shared, layer_norm=shared > 0)
    groups = policy.parameter_groups()
    assert set(groups) == {"policy", "value"}
    names = [name for own in groups.values() for name, _ in own]
    trainable = dict(policy.named_parameters())
    assert len(names) == len(set(names)) and set(names) == set(trainable)
    for own in groups.values():
        assert all(parameter is trainable[name] for name, parameter in own)
    # The value's gradient reaches its own group alone, and the log-probs' theirs alone.
    batch = observations(4)
    out = policy.evaluate(batch, torch.zeros(4, 1, 2, dtype=torch.long), torch.ones(4))
    for loss, reached in ((out.values.sum(), "value"), (out.log_probs.sum(), "policy")):
        policy.zero_grad()
        loss.backward(retain_graph=True)
        for name, own in groups.items():
            assert all((parameter.grad is not None) == (name == reached) for _, parameter in own)


def test_a_shared_layer_is_the_actors_and_the_value_reads_it(make_policy: MakePolicy) -> None:
    policy, batch = make_policy(hidden=(24, 12), shared_layers=1), observations(4)
    before = policy.value(batch)
    with torch.no_grad():
        policy.actor[0].bias += 1.0
    assert not torch.equal(policy.value(batch), before)
    policy.zero_grad()
    policy.evaluate(batch, torch.zeros(4, 1, 2, dtype=torch.long), torch.ones(4)).values.sum().backward()
    assert policy.actor[0].bias.grad is None


def test_tasks_are_told_apart(make_policy: MakePolicy) -> None:
    several, single = make_policy(("reach", "push")), make_policy("reach")
    state = observations(1)["state"]
    first, second = (several.value({"state": state, "task": torch.tensor([task])}) for task in (0, 1))
    assert not torch.equal(first, second)
    width = {policy.tasks: policy.actor[0].in_features for policy in (several, single)}
    assert width == {1: 10, 2: 12}


def test_an_instruction_tells_tasks_apart(make_policy: MakePolicy) -> None:
    """By its words, however many tasks the environment has and in whatever order."""
    pair = make_policy(("reach", "push"), task_input="instruction")
    turned = make_policy(("push", "reach"), task_input="instruction")
    single = make_policy("push", task_input="instruction")
    state = observations(1)["state"]
    reach, push = (pair.value({"state": state, "task": torch.tensor([task])}) for task in (0, 1))
    assert not torch.equal(reach, push)
    for policy in (turned, single):
        assert torch.equal(policy.value({"state": state, "task": torch.tensor([0])}), push)
    assert single.state_dict().keys() == make_policy("push").state_dict().keys(), "words are no weights"
    assert pair.settings.parameters(pair_spec()) == sum(p.numel() for p in pair.parameters())


def pair_spec() -> EnvironmentSpec:
    return make_spec(EnvironmentSettings("point_reach", ("reach", "push")))


def test_a_bag_of_words_by_hand() -> None:
    bag = bag_of_words("Put the bowl on the plate")
    expected = sorted([2.0, 1, 1, 1, 1], reverse=True)
    assert sorted(bag[bag > 0].tolist(), reverse=True) == pytest.approx([n / 8**0.5 for n in expected])
    assert torch.equal(bag, bag_of_words("the plate on the bowl put")), "order is not told"


def test_starts_near_uniform() -> None:
    spec = make_spec(EnvironmentSettings("point_reach", "reach"))
    torch.manual_seed(0)
    policy = MlpPolicy(MlpSettings(), spec)
    out = policy.evaluate(observations(64), torch.zeros(64, 1, 2, dtype=torch.long), torch.ones(64))
    assert out.entropies.min() > 0.99 * np.log(256)


@pytest.mark.parametrize("head", get_args(HeadName))
@pytest.mark.parametrize("layer_norm, shared", [(False, 0), (True, 0), (False, 1), (True, 1), (True, 2)])
def test_parameters_are_counted_without_building(
    make_policy: MakePolicy, head: HeadName, layer_norm: bool, shared: int
) -> None:
    network = {"layer_norm": layer_norm, "shared_layers": shared, "hidden": (24, 12)}
    policy = make_policy(("reach", "push"), head=head, knots=5, **network)
    spec = make_spec(EnvironmentSettings("point_reach", ("reach", "push")))
    assert policy.settings.parameters(spec) == sum(own.numel() for own in policy.parameters())


@pytest.mark.parametrize("head", get_args(HeadName))
def test_an_exact_kl_survives_float16(make_policy: MakePolicy, head: HeadName) -> None:
    """The replay stores the logits of an exact KL in half precision."""
    policy = make_policy(head=head)
    batch = observations(200)
    decision = policy.act(batch, 1.0, torch.Generator().manual_seed(0))
    assert decision.logits is not None
    stored = decision.logits.half()
    now = policy.evaluate(batch, decision.tokens, torch.ones(200)).logits
    assert now is not None
    assert exact_kl(stored, now).abs().max() < 1e-4


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"bins": 1}, "policy.bins"),
        ({"chunk": 0}, "policy.chunk"),
        ({"hidden": ()}, "policy.hidden"),
        ({"knots": 1}, "policy.knots"),
        ({"shared_layers": 3}, "policy.shared_layers"),
        ({"initial_std": 0.0}, "policy.initial_std"),
    ],
)
def test_impossible_sizes_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        MlpSettings(**settings)


@pytest.mark.parametrize(
    "observed, inputs, missing",
    [((), None, "state, or"), (("state",), ("landmarks",), "landmarks")],
)
def test_an_environment_without_its_vectors_is_refused(
    observed: tuple[str, ...], inputs: Any, missing: str
) -> None:
    spec = make_spec(EnvironmentSettings("point_reach", "reach"))
    spec = replace(spec, observation={name: spec.observation[name] for name in observed})
    with pytest.raises(UserError, match=rf"add {missing}.* to env\.observations"):
        MlpPolicy(MlpSettings(inputs=inputs), spec)


@pytest.mark.parametrize("inputs", [(), ("state", "state")])
def test_inputs_are_named_once(inputs: Any) -> None:
    with pytest.raises(UserError, match=r"policy\.inputs"):
        MlpSettings(inputs=inputs)


def test_vectors_are_read_one_behind_the_other_in_their_order() -> None:
    spec = make_spec(EnvironmentSettings("point_reach", "push", observations=("landmarks", "proprio")))
    policy = MlpPolicy(MlpSettings(hidden=(8,), bins=16), spec)
    assert policy.normalizer.inputs == ("proprio", "landmarks")
    seen = {"proprio": torch.tensor([[1.0, 2.0]]), "landmarks": torch.arange(3.0, 9.0)[None]}
    assert policy.features(seen).tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    rows = policy.normalizer.rows({name: tensor.numpy() for name, tensor in seen.items()})
    assert rows.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    decision = policy.act(seen, 1.0, torch.Generator().manual_seed(0))
    assert decision.tokens.shape == (1, 1, 2)


def test_landmarks_that_are_not_to_be_read_change_nothing() -> None:
    def act(observed: Any, settings: MlpSettings) -> tuple[torch.Tensor, torch.Tensor]:
        spec = make_spec(EnvironmentSettings("point_reach", "reach", observations=observed))
        torch.manual_seed(0)
        policy = MlpPolicy(settings, spec)
        seen = observations(5) | {"landmarks": torch.randn(5, 6)}
        decision = policy.act(seen, 1.0, torch.Generator().manual_seed(1))
        assert decision.logits is not None
        return decision.logits, decision.values

    expected = act(("state",), MlpSettings())
    actual = act(("state", "landmarks"), MlpSettings(inputs=("state",)))
    for one, other in zip(actual, expected):
        assert torch.equal(one, other)
