"""Demonstrations beside an objective: their loss, and that it is the same whatever the micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gipo_vla.distributed import group
from gipo_vla.learner.demonstrated import Demonstrated, DemonstratedShare, cloning_loss, tokens_of
from gipo_vla.learner.learner import Learner
from gipo_vla.policies.base import Evaluation
from gipo_vla.policies.mlp import MlpPolicy
from gipo_vla.replay.segment import SegmentBatch
from tests.learner.conftest import BINS, CHUNK, CPU, MakeBatch, MakeLearner

COUNT, COEFFICIENT = 6, 0.3


@pytest.fixture
def demonstrated() -> Demonstrated:
    """Chunks of 1 to 3 valid actions."""
    rng = np.random.default_rng(5)
    states = rng.normal(size=(COUNT, 10)).astype(np.float32)
    actions = rng.uniform(-1, 1, (COUNT, CHUNK, 2)).astype(np.float32)
    valid = np.arange(CHUNK) < 1 + np.arange(COUNT)[:, None] % CHUNK
    return Demonstrated({"state": states, "task": np.zeros(COUNT, np.int64)}, actions, valid)


def update(learner: Learner, batch: SegmentBatch, beside: Demonstrated | None) -> dict[str, float]:
    """One update, with demonstrations beside the batch."""
    micro_batches = learner.micro_batches
    share = beside and DemonstratedShare(learner.policy, beside, micro_batches, COEFFICIENT, CPU)
    own = learner.begin(batch, 3, share)
    for index in range(micro_batches):
        learner.micro_step(own, index)
    return learner.end(own)


def test_the_loss_by_hand(make_policy: Callable[..., MlpPolicy]) -> None:
    """Two decisions, the second of one action: -(ln 1/2 + ln 1/4 + ln 1/8 + ln 1/2 + ...) of six tokens."""
    policy = make_policy()
    valid = np.array([[True, True, False], [True, False, False]])
    seen = {"state": np.zeros((2, 10), np.float32), "task": np.zeros(2, np.int64)}
    shown = tokens_of(policy, Demonstrated(seen, np.zeros((2, CHUNK, 2), np.float32), valid), CPU)
    halvings = torch.tensor([[[1.0, 2], [3, 1], [9, 9]], [[2, 2], [9, 9], [9, 9]]])
    logits = torch.nn.functional.one_hot(shown.tokens, BINS).float()
    logits[1, 0, 0] = torch.eye(BINS)[0]  # one of the six is likeliest elsewhere
    nothing = torch.zeros(())
    evaluation = Evaluation(-np.log(2.0) * halvings, nothing, nothing, logits)
    loss, sums = cloning_loss(policy, shown, evaluation)
    assert loss.item() == pytest.approx(11 * np.log(2.0))
    assert sums[[0, 1, 3]].tolist() == pytest.approx([11 * np.log(2.0), 5, 6])
    # The action 0 is coded by the nearest of 8 bins, 1/7 away; the wrong one stands for -1.
    assert sums[2].item() == pytest.approx(5 / 7 + 1)


def test_it_is_added_to_the_objective(
    make_learner: MakeLearner, make_batch: MakeBatch, demonstrated: Demonstrated
) -> None:
    """The gradient is that of the objective and, with its weight, that of the mean over valid tokens."""
    policy = make_learner().policy
    assert isinstance(policy, MlpPolicy)
    shown = tokens_of(policy, demonstrated, CPU)
    log_probs = policy.evaluate(shown.observations, shown.tokens, shown.temperature).log_probs
    cloning = -log_probs[shown.mask].mean()
    (expected,) = torch.autograd.grad(cloning, policy.action_head.weight)
    found: list[torch.Tensor] = []
    for beside in (None, demonstrated):
        learner = make_learner()
        parts: list[torch.Tensor] = []
        learner.policy.action_head.weight.register_hook(parts.append)  # type: ignore[attr-defined]
        metrics = update(learner, make_batch(), beside)
        found.append(sum(parts, torch.zeros_like(expected)))
        assert ("demonstration/loss" in metrics) == (beside is not None)
    torch.testing.assert_close(found[1] - found[0], COEFFICIENT * expected, rtol=1e-4, atol=1e-6)
    assert metrics["demonstration/loss"] == pytest.approx(cloning.item(), rel=1e-5)


def test_micro_batches_change_nothing(
    make_learner: MakeLearner, make_batch: MakeBatch, demonstrated: Demonstrated, weights: Any
) -> None:
    """Also if there are more of them than demonstrations."""
    for few in (demonstrated, demonstrated.part(slice(3))):
        whole, cut = make_learner(), make_learner(micro_batch_segments=1)
        metrics = [update(learner, make_batch(), few) for learner in (whole, cut)]
        assert metrics[0]["demonstration/loss"] == pytest.approx(metrics[1]["demonstration/loss"], rel=1e-6)
        for name, parameter in weights(whole).items():
            torch.testing.assert_close(parameter, weights(cut)[name], rtol=1e-4, atol=1e-6)


def test_a_policy_that_rests_is_not_cloned_either(
    make_learner: MakeLearner, make_batch: MakeBatch, demonstrated: Demonstrated, weights: Any
) -> None:
    learner = make_learner(value_only_updates=1)
    before = weights(learner)
    assert update(learner, make_batch(), demonstrated)["demonstration/loss"] > 0
    after = weights(learner)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith(("critic", "value")) for name in moved)


def test_ranks_share_the_demonstrations(
    make_policy: Callable[..., MlpPolicy],
    demonstrated: Demonstrated,
    process_group: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each demonstration goes through one forward of one rank."""
    policy, seen = make_policy(), []
    monkeypatch.setattr(group, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(group, "rank", lambda rank=rank: rank)
        share = DemonstratedShare(policy, demonstrated, 2, COEFFICIENT, CPU)
        assert share.tokens == int(demonstrated.valid.sum()) * 2
        seen += [part.observations["state"] for part in share.parts]
    np.testing.assert_array_equal(torch.cat(seen).numpy(), demonstrated.observations["state"])
