"""The scorers that are shipped: what they learn, when, and what never reaches them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gipo_envs import EnvironmentSettings, make_spec
from gipo_envs.errors import UserError
from gipo_vla.checkpoint import state_tree
from gipo_vla.credit import CreditContext, GroupEpisode, InformationGain, InformationGainSettings
from gipo_vla.credit.base import ExpertChunks
from gipo_vla.credit.information_gain.demonstration import DemonstrationScorer, DemonstrationScorerSettings
from gipo_vla.credit.information_gain.scorers import Scorer
from gipo_vla.credit.information_gain.success_belief import BINS, SuccessBelief, SuccessBeliefSettings
from gipo_vla.policies.mlp import MlpPolicy, MlpSettings
from gipo_vla.settings.registry import scorers

CPU = torch.device("cpu")


def context(
    tasks: Any = "reach", policy: Any = None, demonstrations: ExpertChunks | None = None
) -> CreditContext:
    spec = make_spec(EnvironmentSettings("point_reach", tasks, ("state", "landmarks")))
    read = None if demonstrations is None else lambda folder, match: demonstrations
    return CreditContext(spec, policy, CPU, 3, read)


def alone(total: Tensor) -> Tensor:
    return total


def walk(end: float, seed: int, terminated: bool | None = None, task: int = 0) -> GroupEpisode:
    """Ten steps of a point along x from 0 to ``end``; beyond 0.5 it has succeeded, in the last step."""
    rng = np.random.default_rng(seed)
    state = rng.normal(scale=0.01, size=(11, 10)).astype(np.float32)
    state[:, 0] += np.linspace(0, end, 11)
    success = np.zeros((10, 1), bool)
    success[-1] = end > 0.5
    return GroupEpisode(
        0,
        success.astype(np.float32),
        np.ones(10, np.int64),
        success,
        bool(success.any()) if terminated is None else terminated,
        observations={
            "state": state,
            "landmarks": state[:, :6].copy(),
            "task": np.full(11, task, np.int64),
        },
        task=task,
    )


def group(seed: int, count: int = 6) -> list[GroupEpisode]:
    ends = np.random.default_rng(seed).uniform(0, 1, count)
    return [walk(end, 100 * seed + number) for number, end in enumerate(ends)]


def belief(**changes: Any) -> SuccessBelief:
    own = {"training_steps": 150} | changes
    return SuccessBelief(SuccessBeliefSettings(**own), context())


def score(scorer: Scorer, episodes: Sequence[GroupEpisode]) -> list[np.ndarray]:
    scores = scorer.score(episodes)
    assert scores is not None
    return scores


# ----------------------------------------------------------------------------------------- success belief


def test_belief_learns_what_leads_to_success() -> None:
    scorer = belief()
    for seed in range(8):
        scorer.observe(group(seed), scorer.score(group(seed)))
    scorer.refresh(alone)
    won, lost = score(scorer, [walk(1.0, 7001, terminated=False), walk(0.1, 7002)])
    assert won[-1] > 0.9 > 0.5 > lost[-1]
    assert won[-1] > won[5] > lost[5]
    # Near the start nothing can be known of the end; over whole walks it is better than the base rate.
    fresh = group(99, 40)
    scorer.observe(fresh, scorer.score(fresh))
    metrics: Any = scorer.metrics(scorer.take_sums())
    rate = metrics["credit/belief_outcome_mean"]
    assert metrics["credit/belief_brier"] < 0.9 * rate * (1 - rate)
    assert metrics["credit/belief_calibration_error"] < 0.15


def test_belief_says_nothing_until_it_has_seen_both_outcomes() -> None:
    scorer = belief()
    assert scorer.score(group(0)) is None
    failures = [walk(0.1, 1), walk(0.2, 2)]
    scorer.observe(failures, None)
    scorer.refresh(alone)
    assert scorer.version == 0 and scorer.score(failures) is None
    scorer.observe([walk(0.9, 3)], None)
    scorer.refresh(alone)
    assert scorer.version == 1 and scorer.score(failures) is not None


def test_belief_does_not_move_within_its_window() -> None:
    """However many groups it has seen, also the very one that it scores again."""
    scorer = belief(training_steps=5)
    scorer.observe(group(0), None)
    scorer.refresh(alone)
    before = score(scorer, group(1))
    scorer.observe(group(1), before)
    for first, second in zip(before, score(scorer, group(1))):
        np.testing.assert_array_equal(first, second)
    scorer.refresh(alone)
    assert not np.array_equal(before[0], score(scorer, group(1))[0])


def test_where_the_task_has_ended_the_belief_is_the_outcome() -> None:
    scorer = belief(training_steps=1)
    scorer.observe(group(0), None)
    scorer.refresh(alone)
    won, lost, cut = score(
        scorer, [walk(0.9, 1, terminated=True), walk(0.1, 2, terminated=True), walk(0.1, 3, terminated=False)]
    )
    assert won[-1] == 1.0 and lost[-1] == 0.0 and 0 < cut[-1] < 1


def test_calibration_by_hand() -> None:
    """Estimates 0.95 of one success, 0.15 and 0.15 of one success and one failure."""
    scorer = belief()
    scorer._calibrate(np.array([0.95, 0.15, 0.15]), np.array([1.0, 1.0, 0.0]))
    metrics = scorer.metrics(scorer.take_sums())
    assert metrics["credit/belief_brier"] == pytest.approx((0.05**2 + 0.85**2 + 0.15**2) / 3)
    assert metrics["credit/belief_calibration_error"] == pytest.approx((0.05 + abs(0.3 - 1.0)) / 3)
    assert metrics["credit/belief_mean"] == pytest.approx(1.25 / 3)
    assert metrics["credit/belief_outcome_mean"] == pytest.approx(2 / 3)
    assert set(scorer.metrics(scorer.take_sums()).values()) == {None}
    assert BINS == 10


def test_memory_keeps_the_latest_states() -> None:
    scorer = belief(memory=25)
    for seed in range(3):
        scorer.observe(group(seed, 2), None)
    expected = np.concatenate([e.observations["landmarks"] for seed in (1, 2) for e in group(seed, 2)])[-25:]
    np.testing.assert_array_equal(scorer.state_dict()["inputs"], expected)


def test_several_tasks_are_told_apart() -> None:
    """The same walks succeed in one task and fail in the other."""
    settings = SuccessBeliefSettings(training_steps=200)
    scorer = SuccessBelief(settings, context(("reach", "push")))
    for seed in range(6):
        scorer.observe([walk(0.9, seed, task=0), walk(0.45, seed, task=1)], None)
    scorer.refresh(alone)
    first, second = score(scorer, [walk(0.4, 50, task=0), walk(0.4, 50, task=1)])
    assert first[5] > second[5] + 0.5


def in_lockstep(ranks: int) -> list[Callable[[Tensor], Tensor]]:
    """A ``sum_over_ranks`` for each of so many threads."""
    barrier, box = threading.Barrier(ranks, timeout=60), [torch.empty(0)] * ranks

    def make(rank: int) -> Callable[[Tensor], Tensor]:
        def reduce(own: Tensor) -> Tensor:
            box[rank] = own
            barrier.wait()
            total = torch.stack(box).sum(0)
            barrier.wait()
            return total

        return reduce

    return [make(rank) for rank in range(ranks)]


@pytest.mark.parametrize("shares", [(3, 3), (6, 0)], ids=["shared", "one rank has seen nothing"])
def test_ranks_train_one_network(shares: tuple[int, int]) -> None:
    own = [belief(training_steps=5) for _ in shares]
    seed = 0
    for scorer, share in zip(own, shares):
        for _ in range(share):
            scorer.observe(group(seed), None)
            seed += 1
    threads = [
        threading.Thread(target=scorer.refresh, args=(reduce,))
        for scorer, reduce in zip(own, in_lockstep(len(shares)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [scorer.version for scorer in own] == [1, 1]
    states = [scorer.state_dict() for scorer in own]
    for name in ("mean", "std"):
        assert torch.equal(states[0][name], states[1][name])
    for name, tensor in states[0]["network"].items():
        assert torch.equal(tensor, states[1]["network"][name]), name


def through_disk(state: Any) -> Any:
    plain, tensors = state_tree.split(state)
    return state_tree.join(json.loads(json.dumps(plain)), tensors)


def test_a_saved_belief_goes_on_to_the_bit() -> None:
    scorer, other = belief(training_steps=5), belief(training_steps=5)
    other.load_state_dict(through_disk(scorer.state_dict()))  # before anything was seen
    scorer.observe(group(0), None)
    scorer.refresh(alone)
    scorer.observe(group(1), scorer.score(group(1)))
    other.load_state_dict(through_disk(scorer.state_dict()))
    assert other.version == 1 and other.take_sums() == scorer.take_sums()
    for own in (scorer, other):
        own.observe(group(2), own.score(group(2)))
        own.refresh(alone)
    for first, second in zip(score(scorer, group(3)), score(other, group(3))):
        np.testing.assert_array_equal(first, second)


def test_inputs_that_are_not_there_are_refused() -> None:
    spec = make_spec(EnvironmentSettings("point_reach", "reach", ("state",)))
    without = CreditContext(spec, object(), CPU, 0)  # type: ignore[arg-type]
    for source in ("landmarks", "features"):
        with pytest.raises(UserError, match=r"credit\.scorer\.input"):
            SuccessBelief(SuccessBeliefSettings(input=source), without)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- demonstration action


def mlp(seed: int = 0, chunk: int = 2) -> MlpPolicy:
    spec = make_spec(EnvironmentSettings("point_reach", "reach"))
    torch.manual_seed(seed)
    policy = MlpPolicy(MlpSettings(hidden=(16,), bins=16, chunk=chunk), spec)
    with torch.no_grad():  # far from uniform, so that states differ
        policy.action_head.weight.mul_(60)
    return policy


def chunks(match: str = "state") -> ExpertChunks:
    """Two decisions: near x = 0 to the right, near x = 1 to the left."""
    places = np.zeros((2, 10 if match == "state" else 6), np.float32)
    places[1, 0] = 1.0
    actions = np.array([[[0.9, 0.0]] * 2, [[-0.9, 0.0]] * 2], np.float32)
    return ExpertChunks({match: places}, actions, np.zeros(2, np.int64))


def demonstration(policy: MlpPolicy, match: str = "state") -> DemonstrationScorer:
    settings = DemonstrationScorerSettings(demonstrations="x", match=match)  # type: ignore[arg-type]
    return DemonstrationScorer(settings, context(policy=policy, demonstrations=chunks(match)))


@pytest.mark.parametrize("match", ["state", "landmarks"])
def test_the_likelihood_of_the_nearest_experts_chunk(match: str) -> None:
    policy = mlp()
    (scores,) = score(demonstration(policy, match), [walk(1.0, 5)])
    states = torch.from_numpy(walk(1.0, 5).observations["state"])
    for row, state in enumerate(states):
        action = 0.9 if row < 5.5 and state[0] < 0.5 else -0.9
        tokens = policy.encode(torch.tensor([[[action, 0.0]] * 2]))
        with torch.no_grad():
            log_probs = policy.evaluate({"state": state[None]}, tokens, torch.ones(1)).log_probs
        assert scores[row] == pytest.approx(float(log_probs.mean().exp()), rel=1e-5)
    assert ((scores > 0) & (scores < 1)).all() and scores.std() > 1e-3


def test_the_copy_of_the_policy_moves_at_a_refresh_only() -> None:
    policy = mlp()
    scorer = demonstration(policy)
    before = score(scorer, [walk(1.0, 5)])[0]
    with torch.no_grad():
        policy.action_head.weight.mul_(0.1)
    np.testing.assert_array_equal(score(scorer, [walk(1.0, 5)])[0], before)
    restored = demonstration(policy)
    restored.load_state_dict(through_disk(scorer.state_dict()))
    np.testing.assert_array_equal(score(restored, [walk(1.0, 5)])[0], before)
    scorer.refresh(alone)
    assert scorer.version == 1 and not np.array_equal(score(scorer, [walk(1.0, 5)])[0], before)


# ---------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", ["success_belief", "demonstration"])
def test_no_gradient_crosses_between_scorer_and_policy(name: str) -> None:
    """The policy's gradient is that of the same advantages as plain numbers, and the scorer gets none."""
    policy = mlp(chunk=1)
    policy_chunks = chunks()
    single = ExpertChunks(policy_chunks.observations, policy_chunks.actions[:, :1], policy_chunks.task)
    own: Any = {
        "success_belief": SuccessBeliefSettings(training_steps=5),
        "demonstration": DemonstrationScorerSettings(demonstrations="x"),
    }[name]
    credit = InformationGain(InformationGainSettings(scorer=own))
    credit.prepare(context(policy=policy, demonstrations=single))
    for _ in range(2):
        credit.on_group(group(0))
        for _ in range(5):
            credit.end_iteration(alone)
    assert all(parameter.grad is None for parameter in policy.parameters()), "neither scoring nor training"
    episodes = group(1)
    advantages = torch.from_numpy(np.concatenate(credit.on_group(episodes)))
    assert advantages.any() and not advantages.requires_grad
    states = torch.from_numpy(np.concatenate([e.observations["state"][:-1] for e in episodes]))
    tokens = torch.zeros(len(states), 1, 2, dtype=torch.int64)

    def gradients(weights: Tensor) -> list[Tensor]:
        policy.zero_grad()
        log_probs = policy.evaluate({"state": states}, tokens, torch.ones(len(states))).log_probs.sum((1, 2))
        (-(weights * log_probs).mean()).backward()
        return [p.grad.clone() for p in policy.actor.parameters() if p.grad is not None]

    found, expected = gradients(advantages), gradients(torch.tensor(advantages.tolist()))
    assert len(found) > 0 and all(torch.equal(a, b) for a, b in zip(found, expected))
    inner: Any = credit.scorer
    module = inner._network if name == "success_belief" else inner._frozen
    assert all(not p.requires_grad for p in module.parameters())
    if name == "demonstration":
        assert all(p.grad is None for p in module.parameters())


def test_unknown_scorers_name_the_nearest() -> None:
    with pytest.raises(UserError, match="success_belief"):
        scorers.get("succes_belief")
    assert {"success_belief", "instruction", "demonstration"} <= set(scorers.classes())
