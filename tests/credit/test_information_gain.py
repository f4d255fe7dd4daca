"""IGPO's mathematics, and what the credit does around its scorer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gipo_envs import EnvironmentSettings, make_spec
from gipo_envs.errors import UserError
from gipo_vla.credit import (
    CreditBatch,
    CreditContext,
    Gae,
    GaeSettings,
    GroupEpisode,
    InformationGain,
    InformationGainSettings,
)
from gipo_vla.credit.information_gain import discounted_sums, information_gain, standardized_by_index
from gipo_vla.credit.information_gain.demonstration import DemonstrationScorerSettings
from gipo_vla.credit.information_gain.instruction import InstructionScorerSettings
from gipo_vla.credit.information_gain.scorers import Scorer, ScorerSettings, Scores
from gipo_vla.credit.information_gain.success_belief import SuccessBeliefSettings
from gipo_vla.settings.registry import credits

SPEC = make_spec(EnvironmentSettings("point_reach", "reach", ("state", "landmarks")))


@dataclass(frozen=True)
class GivenScoresSettings(ScorerSettings):
    name: str = "test_given"

    def build(self, context: CreditContext) -> Scorer:
        return GivenScores()


class GivenScores(Scorer):
    """Scores that the episodes carry."""

    inputs = ("score",)

    def __init__(self) -> None:
        self.version = 0
        self.seen = 0

    def score(self, episodes: Sequence[GroupEpisode]) -> list[Scores] | None:
        return [episode.observations["score"] for episode in episodes]

    def observe(self, episodes: Sequence[GroupEpisode], scores: Sequence[Scores] | None) -> None:
        self.seen += len(episodes)

    def refresh(self, sum_over_ranks: Any) -> None:
        self.version += 1


def episode(scores: Sequence[float], outcome: float = 0.0) -> GroupEpisode:
    steps = len(scores) - 1
    rewards = np.zeros((steps, 2), np.float32)
    rewards[-1, 0] = outcome
    success = np.zeros((steps, 2), bool)
    success[-1, 0] = outcome > 0
    observations = {"score": np.array(scores, np.float64)}
    return GroupEpisode(0, rewards, np.full(steps, 2), success, outcome > 0, observations=observations)


def make(**changes: Any) -> InformationGain:
    own = {"scorer": GivenScoresSettings(), "gamma": 1.0, "coefficient": 1.0} | changes
    credit = InformationGain(InformationGainSettings(**own))
    credit.prepare(CreditContext(SPEC, None, torch.device("cpu"), 0))  # type: ignore[arg-type]
    return credit


# ------------------------------------------------------------------------------------------- mathematics


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 4)), min_size=2, max_size=12),
    st.sampled_from([0.9, 0.99, 1.0]),
)
def test_gains_telescope(path: list[tuple[float, int]], gamma: float) -> None:
    """Discounted by the env steps before it, all gains sum to gamma^(all steps) b_T - b_0."""
    scores, executed = np.array([b for b, _ in path]), np.array([n for _, n in path[1:]])
    gains = information_gain(scores, executed, gamma)
    before = np.concatenate([[0], np.cumsum(executed)])
    expected = gamma ** before[-1] * scores[-1] - scores[0]
    assert (gamma ** before[:-1] * gains).sum() == pytest.approx(expected, abs=1e-9)
    assert discounted_sums([gains], [gamma**executed])[0][0] == pytest.approx(expected, abs=1e-9)


def test_gains_by_hand() -> None:
    """gamma 0.9, two steps, then one: 0.81 * 0.5 - 0.3 and 0.9 * 0.1 - 0.5, which is clipped."""
    scores, executed = np.array([0.3, 0.5, 0.1]), np.array([2, 1])
    np.testing.assert_allclose(information_gain(scores, executed, 0.9, 0.2), [0.105, -0.2])


def test_normalising_by_index_by_hand() -> None:
    """Index 0: 1, 3, 5 (mean 3). Index 1 is reached by 2 and 4; for the third stands the mean 3 of all.

    What is left: -2, 0, 2 and -1, 1, with a deviation of sqrt(10 / 4).
    """
    gains = [np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([5.0])]
    std = math.sqrt(10 / 4)
    result = standardized_by_index(gains, 3)
    for own, expected in zip(result, ([-2.0, -1.0], [0.0, 1.0], [2.0])):
        np.testing.assert_allclose(own, np.array(expected) / std)


def test_an_index_that_few_reach_is_compared_with_the_group() -> None:
    """Index 1 is reached by one, which gains 9; of four, three count as the mean 3: (9 + 3 * 3) / 4 = 4.5."""
    gains = [np.array([1.0, 9.0]), np.array([1.0]), np.array([1.0])]
    result = standardized_by_index(gains, 4)
    # Index 0: (3 + 3) / 4 = 1.5. Left: -0.5 three times, and 4.5.
    std = math.sqrt((3 * 0.25 + 4.5**2) / 3)
    np.testing.assert_allclose(np.concatenate(result), np.array([-0.5, 4.5, -0.5, -0.5]) / std)


@pytest.mark.parametrize("episodes", [4, 8, 16])
@pytest.mark.parametrize("drift", [0.0, 0.03])
def test_equal_successes_get_the_same_whenever_they_come(episodes: int, drift: float) -> None:
    """With ``samples_per_index`` of the group's size: half of a group gains 0.9 in its last step, each later
    than the one before; the others fail at a step limit of 50. Everything else gains ``drift``."""
    gains = [np.full(50, drift) for _ in range(episodes)]
    for number in range(episodes // 2):
        gains[number] = np.full(10 + 4 * number, drift)
        gains[number][-1] += 0.9
    result = standardized_by_index(gains, episodes)
    last = np.array([own[-1] for own in result[: episodes // 2]])
    assert last.min() > 0.95 * last.max() and last.min() > 3
    rest = np.concatenate([own[:-1] for own in result[: episodes // 2]] + result[episodes // 2 :])
    # At the index of one success its mean is that share of it.
    assert rest.min() > -1.1 * last.max() / (episodes - 1) and rest.max() < 0.05 * last.max()


def test_what_others_get_hardly_depends_on_an_early_success() -> None:
    """Seven failures of random gains, and an eighth rollout that fails with them or succeeds early."""
    rng = np.random.default_rng(0)
    failures = [0.05 * rng.standard_normal(40) for _ in range(7)]
    long = 0.05 * rng.standard_normal(40)
    first, second = (standardized_by_index([*failures, own], 8)[:7] for own in (long, long[:6]))
    for own, other in zip(first, second):
        np.testing.assert_allclose(own, other, atol=0.5)
        assert np.corrcoef(own, other)[0, 1] > 0.98


def test_small_differences_are_not_blown_up() -> None:
    """A scorer that moves by a hundred-thousandth says nothing, and is not made to by normalisation."""
    gains = [np.array([1e-5]), np.array([-1e-5])]
    assert np.abs(np.concatenate(standardized_by_index(gains, 2))).max() == pytest.approx(0.01)


def test_discounted_sums_by_hand() -> None:
    sums = discounted_sums([np.array([1.0, 2.0, 4.0]), np.array([8.0])], [np.full(3, 0.5), np.full(1, 0.5)])
    assert [own.tolist() for own in sums] == [[3.0, 4.0, 4.0], [8.0]]


# ------------------------------------------------------------------------------------------------ credit


@pytest.mark.parametrize("gamma", [1.0, 0.97])
def test_a_constant_scorer_gives_zero(gamma: float) -> None:
    credit = make(gamma=gamma, base="gae")
    group = [episode([0.37] * 5), episode([0.37] * 3), episode([0.37] * 4)]
    assert not np.concatenate(credit.on_group(group)).any()


def test_gains_and_outcome_are_normalised_apart() -> None:
    """Outcomes 1 and 0 are +-1/sqrt(2). Gains 0.1 and -0.1 of the first step have mean 0, 0.1 and 0.1 of the
    second no difference: +-0.1 and 0 over sqrt(0.02 / 3) = 0.1 / sqrt(1.5)."""
    credit = make(samples_per_index=2, coefficient=2.0)
    better, worse = credit.on_group([episode([0.5, 0.6, 0.7], 1.0), episode([0.5, 0.4, 0.5], 0.0)])
    half, gain = 1 / math.sqrt(2), math.sqrt(1.5)
    np.testing.assert_allclose(better, [2 * gain + half, half], atol=1e-5)
    np.testing.assert_allclose(worse, [-2 * gain - half, -half], atol=1e-5)


def test_a_group_in_which_every_rollout_fails_still_learns() -> None:
    credit = make()
    advantages = credit.on_group([episode([0.1, 0.2, 0.3]), episode([0.1, 0.15, 0.05]), episode([0.1, 0.1])])
    assert all(own.any() for own in advantages)
    assert advantages[0][0] > advantages[1][0]


def test_permuting_episodes_permutes_advantages() -> None:
    rng = np.random.default_rng(0)
    group = [episode(rng.random(n), float(n > 4)) for n in (3, 6, 4, 9, 5)]
    order = [3, 0, 4, 1, 2]
    plain, permuted = make().on_group(group), make().on_group([group[index] for index in order])
    for place, index in enumerate(order):
        np.testing.assert_allclose(permuted[place], plain[index], atol=1e-5)


def test_with_gae_the_gains_are_added_and_targets_stay() -> None:
    credit = make(base="gae", gamma=0.9)
    assert credit.needs_values and credit.needs_groups and not make().needs_values
    generator = torch.Generator().manual_seed(0)
    batch = CreditBatch(
        rewards=torch.randn(2, 4, 1, generator=generator),
        executed=torch.ones(2, 4, dtype=torch.int64),
        mask=torch.tensor([[True] * 4, [True] * 3 + [False]]),
        terminated=torch.tensor([True, False]),
        values=torch.randn(2, 4, generator=generator),
        bootstrap_values=torch.randn(2, generator=generator),
        advantages=torch.randn(2, 4, generator=generator),
    )
    plain = Gae(GaeSettings(gamma=0.9)).on_batch(batch)
    output = credit.on_batch(batch)
    assert batch.advantages is not None and output.value_targets is not None
    torch.testing.assert_close(
        output.advantages, plain.advantages + torch.where(batch.mask, batch.advantages, 0.0)
    )
    assert torch.equal(output.value_targets, plain.value_targets)  # type: ignore[arg-type]
    assert output.advantages[1, 3] == 0


def test_a_scorer_equal_to_the_critic_is_in_gae_already() -> None:
    """docs/credit.md's remark: GAE's own deltas are rewards plus the gains of the critic's values."""
    values, rewards = torch.tensor([[0.2, 0.5, 0.4]]), torch.tensor([[[0.0], [0.0], [1.0]]])
    batch = CreditBatch(
        rewards=rewards,
        executed=torch.ones(1, 3, dtype=torch.int64),
        mask=torch.ones(1, 3, dtype=torch.bool),
        terminated=torch.tensor([False]),
        values=values,
        bootstrap_values=torch.tensor([0.9]),
    )
    deltas = Gae(GaeSettings(gamma=0.9, gae_lambda=0.0)).on_batch(batch).advantages[0].numpy()
    scores = np.array([0.2, 0.5, 0.4, 0.9])
    gains = information_gain(scores, np.ones(3, np.int64), 0.9)
    np.testing.assert_allclose(deltas, np.array([0, 0, 1]) + gains, atol=1e-6)


def test_the_scorer_is_frozen_for_its_window() -> None:
    credit = make(refresh_every=3)
    versions = []
    for _ in range(7):
        credit.on_group([episode([0.1, 0.2]), episode([0.1, 0.3])])
        credit.end_iteration(lambda total: total)
        versions.append(credit.scorer.version)
    assert versions == [0, 0, 1, 1, 1, 2, 2]
    assert credit.metrics(credit.take_sums())["credit/scorer_version"] == 2
    other = make(refresh_every=3)
    other.load_state_dict(credit.state_dict())
    for own in (credit, other):
        own.end_iteration(lambda total: total)
        own.end_iteration(lambda total: total)
        assert own.scorer.version == 3, "the window goes on where it was"


def test_metrics_by_hand() -> None:
    """Gains 0.1, 0.3 (clipped) and -0.1: mean 0.1, deviation sqrt(0.08/3)."""
    credit = make()
    credit.on_group([episode([0.0, 0.1, 0.4]), episode([0.5, 0.4])])
    row = credit.metrics(credit.take_sums())
    assert row["credit/gain_mean"] == pytest.approx(0.1)
    assert row["credit/gain_std"] == pytest.approx(math.sqrt(0.08 / 3))
    assert row["credit/clipped_share"] == pytest.approx(1 / 3)
    nothing = credit.metrics(credit.take_sums())
    assert nothing.keys() == row.keys() and nothing["credit/gain_mean"] is None


# --------------------------------------------------------------------------------- what is optimal stays so


def greedy(rewards: np.ndarray, following: np.ndarray, gamma: float) -> np.ndarray:
    """Optimal action values (S, A) by value iteration; ``following`` is -1 where the episode ends."""
    values = np.zeros(len(rewards))
    for _ in range(2000):
        q = rewards + gamma * np.where(following >= 0, values[following], 0.0)
        values = q.max(axis=1)
    return q


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_shaping_leaves_the_optimal_policy(seed: int) -> None:
    """A random MDP of 6 states and 3 actions with a sparse reward, and any belief in its states.

    Where an episode ends the belief is the outcome, 1 or 0; so shaped values of actions are those of the
    reward and gamma more of it at the end, less the belief in the state, which no action changes.
    """
    rng = np.random.default_rng(seed)
    gamma = 0.9
    following = rng.integers(-2, 6, (6, 3))  # -1: success, -2: failure
    rewards = (following == -1).astype(float)
    belief = rng.random(6)
    after = np.where(following >= 0, belief[following], rewards)
    gains = gamma * after - belief[:, None]
    ends = np.where(following >= 0, following, -1)
    plain = greedy(rewards, ends, gamma)
    shaped = greedy(rewards + gains, ends, gamma)
    np.testing.assert_allclose(shaped, (1 + gamma) * plain - belief[:, None], atol=1e-6)
    best = plain >= plain.max(axis=1, keepdims=True) - 1e-9
    np.testing.assert_array_equal(shaped >= shaped.max(axis=1, keepdims=True) - 1e-6, best)


def test_at_a_step_limit_the_belief_in_the_last_state_counts() -> None:
    """What the module says of step limits. One choice: a lottery that succeeds at once in half of the cases
    and else runs out of time far from success (belief 0), or a way that never succeeds, to where the belief
    is 0.8 when time is over."""

    def shaped(end: float, outcome: float, weight: float) -> float:
        gains = information_gain(np.array([0.3, end]), np.ones(1, np.int64), 1.0)
        return float(outcome + weight * (gains.sum() + 0.3))  # the same b_0 is in all of them

    def values(weight: float, at_limit: float) -> tuple[float, float]:
        lottery = 0.5 * shaped(1.0, 1.0, weight) + 0.5 * shaped(0.0, 0.0, weight)
        return lottery, shaped(at_limit, 0.0, weight)

    assert values(0.1, 0.8) == pytest.approx((0.55, 0.08)), "the default weight keeps the order here"
    assert values(3.0, 0.8) == pytest.approx((2.0, 2.4)), "a heavy one turns it round"
    for weight in (0.1, 3.0, 30.0):  # ends that are outcomes keep it
        assert values(weight, 0.0) == pytest.approx((0.5 * (1 + weight), 0.0))


# ---------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"scorer": "sucess_belief"},
        {"base": "grupp"},
        {"clip": 0.0},
        {"gamma": 1.5},
        {"refresh_every": 0},
        {"samples_per_index": 1},
        {"scorer": {"name": "success_belief", "input": "pixels"}},
    ],
    ids=str,
)
def test_bad_settings_are_explained(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"credit\.{next(iter(wrong))}") as caught:
        credits.validate({"name": "information_gain"} | wrong)
    assert "\n" not in str(caught.value)


def test_demonstrations_are_asked_for() -> None:
    with pytest.raises(UserError, match=r"credit\.scorer\.demonstrations"):
        credits.validate({"name": "information_gain", "scorer": "demonstration"})


def test_landmarks_are_asked_for_where_they_are_read() -> None:
    plain = InformationGainSettings()
    assert plain.needs_landmarks
    for scorer, needed in (
        (SuccessBeliefSettings(input="state"), False),
        (InstructionScorerSettings(), False),
        (DemonstrationScorerSettings(match="landmarks", demonstrations="x"), True),
    ):
        assert replace(plain, scorer=scorer).needs_landmarks is needed
