"""GraphGPO on graphs small enough to work out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gipo_envs import EnvironmentSettings, make_spec
from gipo_envs.errors import UserError
from gipo_vla.credit import CreditContext, GraphCredit, GraphSettings, GroupEpisode
from gipo_vla.credit.graph import group_graph
from gipo_vla.credit.graph.state_graph import edge_rewards, standardized_by_source
from gipo_vla.settings.registry import credits

W = 0.97
GRAPH_ONLY = GraphSettings(beta_episode=0.0, minimum_merge_ratio=0.0)
# Two occurrences with different rewards are always 1/sqrt(2) standard deviations from their mean.
HALF = 1 / math.sqrt(2)


def episode(states: str, success: bool, success_at: int = -1, reward: float | None = None) -> GroupEpisode:
    """Named states, one letter each; the last transition of a success leads to the last of them.

    The hand is as many metres along x as the letter's number.
    """
    steps = len(states) - 1
    successes = np.zeros((steps, 1), bool)
    successes[success_at, 0] = success
    rewards = np.zeros((steps, 1), np.float32)
    rewards[-1, 0] = float(success) if reward is None else reward
    landmarks = np.zeros((steps + 1, 6), np.float32)
    landmarks[:, 0] = [ord(letter) for letter in states]
    executed = np.ones(steps, np.int64)
    return GroupEpisode(0, rewards, executed, successes, success, observations={"landmarks": landmarks})


def context(family: str = "point_reach", task: str = "reach", policy: object = None) -> CreditContext:
    spec = make_spec(EnvironmentSettings(family, task, ("state", "landmarks")))
    return CreditContext(spec, policy, torch.device("cpu"), 0)  # type: ignore[arg-type]


def prepared(settings: GraphSettings) -> GraphCredit:
    credit = GraphCredit(settings)
    credit.prepare(context())
    return credit


def graph_advantages(*episodes: GroupEpisode, **changes: object) -> list[list[float]]:
    credit = prepared(replace(GRAPH_ONLY, **changes))  # type: ignore[arg-type]
    return [[round(float(a), 5) for a in own] for own in credit.on_group(episodes)]


# ------------------------------------------------------------------------------------------ by hand


def test_diamond() -> None:
    """a -> b -> SUCCESS and a -> c -> d -> SUCCESS: from a, b is one step nearer than c.

    Distances after the first step 1 and 2. Everywhere else one occurrence leaves: nothing to compare.
    """
    short, long = graph_advantages(episode("abx", True), episode("acdx", True))
    assert short == [pytest.approx(HALF, abs=1e-5), 0.0]
    assert long == [pytest.approx(-HALF, abs=1e-5), 0.0, 0.0]


@pytest.mark.parametrize("kind", ["geometric", "linear"])
def test_four_choices(kind: str) -> None:
    """From a: twice to b (distance 1), once to c (distance 3), once nowhere (greatest finite + 1 = 5)."""
    episodes = [
        episode("abx", True),
        episode("abx", True),
        episode("acdex", True),
        episode("af", False),
    ]
    # a is at distance 2, so finite distances reach 3 (c); what cannot reach success counts 4.
    distances = np.array([1.0, 1.0, 3.0, 4.0])
    rewards = W ** (distances + 1) if kind == "geometric" else -(distances + 1)
    expected = (rewards - rewards.mean()) / rewards.std(ddof=1)
    result = graph_advantages(*episodes, edge_reward=kind)
    np.testing.assert_allclose([own[0] for own in result], expected, atol=1e-5)
    assert all(set(own[1:]) <= {0.0} for own in result)


def test_a_cycle_counts_each_of_its_steps() -> None:
    """a b a b SUCCESS: from b once back to a (distance 2) and once to success (0); from a twice to b."""
    (result,) = graph_advantages(episode("ababx", True))
    assert result == [0.0, pytest.approx(-HALF, abs=1e-5), 0.0, pytest.approx(HALF, abs=1e-5)]


def test_a_self_loop_is_an_occurrence_and_no_way() -> None:
    """a a b SUCCESS and a b SUCCESS: leaving a are one loop (distance 2) and two steps to b (distance 1)."""
    looping, direct = graph_advantages(episode("aabx", True), episode("abx", True))
    rewards = np.array([W**3, W**2, W**2])
    expected = (rewards - rewards.mean()) / rewards.std(ddof=1)
    np.testing.assert_allclose([looping[0], looping[1], direct[0]], expected, atol=1e-5)
    assert expected[0] == pytest.approx(-2 / math.sqrt(3)) and looping[2] == direct[1] == 0


def test_what_cannot_reach_success_is_one_step_beyond_the_farthest() -> None:
    graph = group_graph([np.array([0, 1, 2]), np.array([0, 3, 4])], [1, None])
    assert graph.distances is not None
    assert graph.distances.tolist() == [2, 1, math.inf, math.inf, math.inf, 0], "node 2 is left out"
    assert graph.reachable_share == 2 / 4
    # After the first steps: 1, and 2 + 1.
    assert [own[0] for own in graph.advantages] == [pytest.approx(HALF), pytest.approx(-HALF)]


def test_without_success_the_graph_says_nothing() -> None:
    assert graph_advantages(episode("aba", False), episode("aca", False)) == [[0.0, 0.0], [0.0, 0.0]]
    mixed = prepared(GraphSettings(minimum_merge_ratio=0.0))
    better, worse = mixed.on_group([episode("ab", False, reward=3.0), episode("ac", False, reward=1.0)])
    np.testing.assert_allclose([*better, *worse], [HALF, -HALF], atol=1e-5)


def test_what_follows_the_first_success_is_in_no_graph() -> None:
    """a b SUCCESS, and then on through c and a: those steps get 0, and a -> c of them is no choice at a."""
    going_on, other = graph_advantages(episode("abxac", True, success_at=1), episode("acbx", True))
    # Leaving a: to b (distance 1), to c (distance 2).
    assert going_on == [pytest.approx(HALF, abs=1e-5), 0.0, 0.0, 0.0]
    assert other[0] == pytest.approx(-HALF, abs=1e-5)


def test_a_success_that_was_not_executed_does_not_count() -> None:
    fluke = GroupEpisode(
        0,
        rewards=np.zeros((1, 2), np.float32),
        executed=np.array([1]),
        success=np.array([[False, True]]),
        terminated=False,
    )
    assert fluke.first_success is None


def test_both_advantages_are_mixed() -> None:
    group = [episode("abx", True), episode("acdx", True), episode("ac", False)]
    graph = graph_advantages(*group)
    # Outcomes 1, 1, 0: mean 2/3, sample standard deviation sqrt(1/3).
    relative = np.array([1 / 3, 1 / 3, -2 / 3]) * math.sqrt(3)
    mixed = prepared(GraphSettings(beta_graph=0.5, beta_episode=2.0, minimum_merge_ratio=0.0))
    for own, part, whole in zip(mixed.on_group(group), graph, relative):
        np.testing.assert_allclose(own, 0.5 * np.array(part) + 2.0 * whole, atol=1e-4)
        assert own.dtype == np.float32


# ---------------------------------------------------------------------------------------- fall-back, metrics


def test_where_nothing_merges_the_episode_gets_all_of_the_weight() -> None:
    # 2 x 60 states that coincide in the first alone: 1 of 121 (the winner's last state is SUCCESS).
    letters = [chr(200 + n) for n in range(120)]
    group = [episode("a" + "".join(letters[:60]), True), episode("a" + "".join(letters[60:]), False)]
    credit = prepared(GraphSettings(beta_graph=1.0, beta_episode=0.5))
    winner, loser = credit.on_group(group)
    np.testing.assert_allclose(winner, 1.5 * HALF, atol=1e-4)
    np.testing.assert_allclose(loser, -1.5 * HALF, atol=1e-4)
    line = credit.notice()
    assert line is not None and "0.8%" in line and "credit.cell" in line and "\n" not in line
    credit.on_group(group)
    assert credit.notice() is None, "said once"
    metrics = credit.metrics(credit.take_sums())
    assert metrics["credit/fallback_share"] == 1.0
    assert metrics["credit/merge_ratio"] == pytest.approx(1 / 121)


def test_diagnostics_are_means_over_groups_and_ranks() -> None:
    first, second = prepared(GRAPH_ONLY), prepared(GRAPH_ONLY)
    # Nodes a b | a c d: 5 occurrences of 4 nodes, one of which branches; 2 of 5 steps differ from 0.
    first.on_group([episode("abx", True), episode("acdx", True)])
    second.on_group([episode("aba", False), episode("aca", False)])  # 6 of 3, a branches, nothing reaches
    sums = [credit.take_sums() for credit in (first, second)]
    total = {name: sum(own[name] for own in sums) for name in sums[0]}
    assert first.metrics(total) == {
        "credit/merge_ratio": pytest.approx((1 / 5 + 1 / 2) / 2),
        "credit/branching_share": pytest.approx((1 / 4 + 1 / 3) / 2),
        "credit/nonzero_share": pytest.approx((2 / 5 + 0) / 2),
        "credit/reachable_share": pytest.approx((1 + 0) / 2),
        "credit/fallback_share": 0.0,
    }
    empty = first.metrics(first.take_sums())
    assert set(empty) == set(first.metrics(total)) and set(empty.values()) == {None}


def test_unreported_sums_survive_a_checkpoint() -> None:
    credit, other = prepared(GRAPH_ONLY), prepared(GRAPH_ONLY)
    credit.on_group([episode("abx", True), episode("acdx", True)])
    other.load_state_dict(credit.state_dict())
    assert other.take_sums() == credit.take_sums()


# ---------------------------------------------------------------------------------- structure of the replay


def test_older_segments_give_paths_and_no_statistics() -> None:
    """No rollout of the group succeeds; an older one went b -> SUCCESS, and a thousand others a -> c."""
    group = [episode("ab", False), episode("ac", False)]
    alone = prepared(GRAPH_ONLY).on_group(group)
    assert not np.concatenate(alone).any()
    older = [episode("bx", True), *[episode("ac", False)] * 1000]
    near, far = prepared(GRAPH_ONLY).on_group(group, older)
    np.testing.assert_allclose([*near, *far], [HALF, -HALF], atol=1e-5)
    credit = prepared(replace(GRAPH_ONLY, structure="replay", structure_transitions=77))
    assert credit.older_transitions == 77 and prepared(GRAPH_ONLY).older_transitions == 0


# ------------------------------------------------------------------------------------------------ properties

groups = st.lists(
    st.tuples(st.text("abcd", min_size=2, max_size=9), st.booleans()), min_size=2, max_size=6
).map(lambda drawn: [episode("a" + states, success) for states, success in drawn])


@settings(derandomize=True, deadline=None)
@given(groups, st.randoms(use_true_random=False))
def test_the_order_of_episodes_does_not_matter(group: list[GroupEpisode], random: object) -> None:
    order = list(range(len(group)))
    random.shuffle(order)  # type: ignore[attr-defined]
    credit = prepared(GraphSettings())
    plain, permuted = credit.on_group(group), credit.on_group([group[index] for index in order])
    for place, index in enumerate(order):
        np.testing.assert_allclose(permuted[place], plain[index], atol=1e-5)


@settings(derandomize=True, deadline=None)
@given(groups)
def test_choices_at_a_node_balance(group: list[GroupEpisode]) -> None:
    """At each node advantages sum to 0; where they are not all 0 their sample standard deviation is 1."""
    leaving: dict[object, list[float]] = {}
    for own, advantages in zip(group, prepared(GRAPH_ONLY).on_group(group)):
        places = own.observations["landmarks"][:, 0].tolist()
        for key, advantage in zip(places, advantages.tolist()):
            leaving.setdefault(key, []).append(advantage)
    for values in leaving.values():
        assert sum(values) == pytest.approx(0, abs=1e-5)
        if any(values):
            assert np.std(values, ddof=1) == pytest.approx(1, abs=1e-5)


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=20),
    st.sampled_from([0.1, 0.97]),
)
def test_scale_and_offset_cancel(occurrences: list[tuple[int, int]], decay: float) -> None:
    sources, distances = np.array(occurrences).T
    plain = edge_rewards(distances.astype(float), "geometric", decay)
    changed = 7.0 * decay ** (distances + 3.0)  # the paper's r and c
    np.testing.assert_allclose(
        standardized_by_source(plain, sources), standardized_by_source(changed, sources), atol=1e-9
    )


# --------------------------------------------------------------------------------------- states and settings


def test_landmarks_within_a_cell_are_one_node() -> None:
    """Two walks of the hand along x, 1 cm apart in y: 3 cm cells merge them."""
    credit = prepared(replace(GRAPH_ONLY, cell=0.03))
    assert credit.inputs == ("landmarks",)
    walks = []
    for offset, xs in ((0.0, (0.0, 0.03, 0.06)), (0.01, (0.0, -0.03, 0.0))):
        landmarks = np.zeros((3, 6), np.float32)
        landmarks[:, 0], landmarks[:, 1] = xs, offset
        walks.append(replace(episode("abc", not offset), observations={"landmarks": landmarks}))
    towards, away = credit.on_group(walks)
    np.testing.assert_allclose([towards[0], away[0]], [HALF, -HALF], atol=1e-5)
    snapshot = credit.snapshot()
    assert snapshot is not None and snapshot["axes"] == ["hand x", "hand y"]
    # The second walk's hand is on average 0.5 cm off at the start (both walks' a, and where it returns).
    assert [node[2] for node in snapshot["nodes"]] == [3, 2, 1]
    start = snapshot["nodes"][snapshot["start"]]
    assert start == [0.0, pytest.approx(0.02 / 3, abs=1e-4), 2]
    assert [1, 2, 1] in snapshot["edges"] and [2, -1, 1] in snapshot["edges"]


def test_keys_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"credit\.state_key is sim.*grid"):
        GraphCredit(GraphSettings(state_key="sim")).prepare(context("metaworld", "reach-v3"))
    with pytest.raises(UserError, match=r"embedding.*no features"):
        GraphCredit(GraphSettings(state_key="embedding")).prepare(context(policy=object()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"state_key": "gird"},
        {"cell": 0.0},
        {"decay": 1.0},
        {"clusters": 0},
        {"edge_reward": "cubic"},
        {"minimum_merge_ratio": 2.0},
        {"structure": "replay", "state_key": "embedding"},
    ],
    ids=str,
)
def test_bad_settings_are_explained(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"credit\.{next(iter(wrong))}") as caught:
        credits.validate({"name": "graph"} | wrong)
    assert "\n" not in str(caught.value)


def test_it_is_registered() -> None:
    credit = GraphSettings().build()
    assert credit.needs_groups and not credit.needs_values
