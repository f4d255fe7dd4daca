"""The cloning loss, its share-out, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from gipo_envs import EnvironmentSettings, make_spec
from gipo_envs.errors import UserError
from gipo_vla.distributed import group
from gipo_vla.imitation.cloning import Cloner
from gipo_vla.learner.demonstrated import Demonstrated, cloning_losses
from gipo_vla.learner.learner import NonFiniteError
from gipo_vla.policies.mlp import MlpPolicy, MlpSettings
from gipo_vla.settings.cloning import CloningLearnerSettings, CloningSettings

MakeCloner = Callable[..., Cloner]
CLONING = CloningSettings(steps=100, batch_size=12, micro_batch_size=12, steps_per_iteration=10)
LEARNER = CloningLearnerSettings(policy_learning_rate=1e-2, warmup_steps=0, schedule="constant")
CHUNK = 3


def make_policy(bins: int = 16) -> MlpPolicy:
    torch.manual_seed(0)
    spec = make_spec(EnvironmentSettings("point_reach", "reach"))
    return MlpPolicy(MlpSettings(hidden=(12,), bins=bins, chunk=CHUNK), spec)


@pytest.fixture
def make_cloner(process_group: None) -> MakeCloner:
    def make(micro_batch: int = 12, **learner: object) -> Cloner:
        settings = replace(LEARNER, **learner)  # type: ignore[arg-type]
        cloning = replace(CLONING, micro_batch_size=micro_batch)
        return Cloner(make_policy(), settings, cloning, torch.device("cpu"))

    return make


def make_batch(seed: int = 0, count: int = 12) -> Demonstrated:
    """Actions that are a function of the state; chunks of 1 to 3 valid actions."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(count, 10)).astype(np.float32)
    actions = np.tanh(np.stack([states[:, k : k + 2] for k in range(CHUNK)], axis=1))
    valid = np.arange(CHUNK) < 1 + np.arange(count)[:, None] % CHUNK
    return Demonstrated({"state": states, "task": np.zeros(count, np.int64)}, actions, valid)


def weights(cloner: Cloner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in cloner.policy.named_parameters()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("bins", [2, 16, 255, 256])
def test_encoding_finds_the_nearest_action(bins: int) -> None:
    policy = make_policy(bins)
    tokens = torch.arange(bins).reshape(-1, 1, 1)
    assert torch.equal(policy.encode(policy.decode(tokens)), tokens)
    actions = torch.linspace(-1.2, 1.2, 999).reshape(-1, 1, 1)
    nearest = (policy.bin_centres - actions).abs().amin(-1)
    assert torch.allclose(
        (policy.decode(policy.encode(actions)) - actions).abs().squeeze(-1), nearest, atol=1e-6
    )


def test_the_loss_is_the_cross_entropy_of_the_experts_tokens(make_cloner: MakeCloner) -> None:
    cloner, batch = make_cloner(), make_batch()
    policy = cloner.policy
    assert isinstance(policy, MlpPolicy)
    logits = policy._logits(policy._inputs({"state": torch.from_numpy(batch.observations["state"])}))
    tokens = policy.encode(torch.from_numpy(batch.actions))
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 2), tokens.flatten(), reduction="none")
    expected = each.reshape(tokens.shape)[torch.from_numpy(batch.valid)].mean()
    assert cloner.update(batch)["loss/train"] == pytest.approx(expected.item(), rel=1e-6)


def test_padding_counts_for_nothing() -> None:
    log_probs = torch.tensor([[[-1.0], [-2.0]], [[-3.0], [float("nan")]]], requires_grad=True)
    mask = torch.tensor([[[True], [True]], [[True], [False]]])
    loss = cloning_losses(log_probs, mask)
    assert loss.item() == 6.0
    loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.flatten().tolist() == [-1.0, -1.0, -1.0, 0.0]


@pytest.mark.parametrize("micro_batch", [1, 4, 5, 6, 11, 99])
def test_the_cut_into_micro_batches_changes_no_update(make_cloner: MakeCloner, micro_batch: int) -> None:
    """Although their valid tokens differ in number. (Adam divides tiny gradients by their own size, and their
    rounding with them, unless its epsilon is large.)"""
    whole, cut = make_cloner(adam_epsilon=1.0), make_cloner(micro_batch, adam_epsilon=1.0)
    for seed in range(3):
        one, other = whole.update(make_batch(seed)), cut.update(make_batch(seed))
        assert one == pytest.approx(other, rel=1e-5)
    for name, tensor in weights(whole).items():
        assert torch.allclose(tensor, weights(cut)[name], atol=1e-5), name


def test_the_value_stays_as_it_was(make_cloner: MakeCloner) -> None:
    cloner = make_cloner()
    before = weights(cloner)
    for seed in range(3):
        cloner.update(make_batch(seed))
    for name, tensor in weights(cloner).items():
        is_value = name.startswith(("critic", "value_head"))
        assert torch.equal(tensor, before[name]) == is_value, name


def test_it_learns_and_the_seed_decides_how(make_cloner: MakeCloner) -> None:
    first, again = make_cloner(), make_cloner()
    losses = [first.update(make_batch())["loss/train"] for _ in range(60)]
    assert losses[0] == pytest.approx(np.log(16), rel=0.01) and losses[-1] < 0.2
    assert [again.update(make_batch())["loss/train"] for _ in range(60)] == losses
    held = first.validate([make_batch()])
    assert held["accuracy/validation"] > 0.95 and held["action_error/validation"] < 0.1
    assert first.validate([make_batch()]) == held, "looking changes nothing"


def test_going_on_from_a_saved_state_is_exact(make_cloner: MakeCloner) -> None:
    cloner = make_cloner(schedule="cosine", warmup_steps=4)
    for seed in range(3):
        cloner.update(make_batch(seed))
    tensors, counters = cloner.optimizer_tensors(), cloner.counters()
    expected = [cloner.update(make_batch(seed)) for seed in range(3, 6)]
    other = make_cloner(schedule="cosine", warmup_steps=4)
    other.load(tensors, counters)
    assert [other.update(make_batch(seed)) for seed in range(3, 6)] == expected


def test_updates_without_finite_loss_are_skipped_and_end_the_run(make_cloner: MakeCloner) -> None:
    cloner = make_cloner(max_nonfinite_updates=3)
    before, broken = weights(cloner), make_batch()
    broken.observations["state"][0] = np.nan
    cloner.update(broken)
    cloner.update(broken)
    assert cloner.counters() == {"attempted": 2, "skipped": 2, "skipped_in_a_row": 2}
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(cloner).items())
    with pytest.raises(NonFiniteError, match=r"learner\.policy_learning_rate"):
        cloner.update(broken)


def test_a_batch_that_ranks_cannot_share_is_refused(
    process_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "world_size", lambda: 5)
    with pytest.raises(UserError, match=r"sft\.batch_size is 12, which 5 ranks .* cannot share equally"):
        Cloner(make_policy(), LEARNER, CLONING, torch.device("cpu"))
