"""Which states count as one: grids over landmarks, clusters of features."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gipo_envs import EnvironmentSettings, make
from gipo_vla.credit.graph.state_keys import FITTED, cluster_ids, grid_ids, number_rows


def same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(((first[:, None] == first) == (second[:, None] == second)).all())


def test_rows_are_numbered_in_their_order() -> None:
    rows = np.array([[3, -1], [0, 5], [3, -1], [3, 0]])
    assert number_rows(rows).tolist() == [1, 0, 1, 2]


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 1 << 40]))
def test_wide_rows_are_numbered_like_narrow_ones(seed: int, factor: int) -> None:
    """With a range beyond 64 bits, where rows cannot be packed into one number each."""
    rows = np.random.default_rng(seed).integers(-2, 3, (40, 5)) * factor
    expected = {row: number for number, row in enumerate(sorted(set(map(tuple, rows.tolist()))))}
    assert number_rows(rows).tolist() == [expected[tuple(row)] for row in rows.tolist()]


def test_a_cell_is_centred_where_the_group_began() -> None:
    """3 cm: what jitters by less than 1.5 cm around its origin stays; 0.0149 and 0.0151 part."""
    landmarks = np.array([[0.30], [0.3149], [0.2851], [0.3151], [0.36]])
    ids = grid_ids(landmarks, landmarks[0], 0.03, np.array([True]))
    assert ids.tolist() == [0, 0, 0, 1, 2]


def test_truths_are_not_measured_in_metres() -> None:
    landmarks = np.array([[0.0, 0.0], [0.0, 1.0], [0.01, 1.0]])
    for cell in (0.03, 100.0):
        ids = grid_ids(landmarks, landmarks[1], cell, np.array([True, False]))
        assert ids.tolist() == [0, 1, 1]


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 10_000))
def test_clusters_do_not_depend_on_the_order_of_states(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(30, 6)).round(1)
    order = rng.permutation(30)
    plain, permuted = cluster_ids(features, 3, 8), cluster_ids(features[order], 3, 8)
    assert same_partition(plain[order], permuted)
    assert len(np.unique(plain)) <= 8


def test_clusters_are_what_lies_together() -> None:
    centres = np.eye(4)[:3] * 10
    which = np.array([0, 1, 2, 2, 1, 0, 0, 1])
    features = centres[which] + np.random.default_rng(0).normal(scale=0.01, size=(8, 4))
    assert same_partition(cluster_ids(features, 2, 3), which)
    assert len(np.unique(cluster_ids(np.ones((5, 4)), 2, 3))) == 1, "no more than there are states"


def test_clusters_of_more_states_than_components_are_fitted_to() -> None:
    rng = np.random.default_rng(0)
    which = rng.integers(0, 3, 2 * FITTED + 1)
    features = np.eye(6)[which] * 10 + rng.normal(scale=0.01, size=(len(which), 6))
    order = rng.permutation(len(which))
    ids = cluster_ids(features, 2, 3)
    assert same_partition(ids, which)
    assert same_partition(ids[order], cluster_ids(features[order], 2, 3))


@pytest.mark.parametrize("family", ["point_reach", "metaworld"])
def test_keys_of_real_environments_are_the_same_after_a_restore(family: str) -> None:
    task = {"point_reach": "push", "metaworld": "button-press-v3"}[family]
    environment = make(EnvironmentSettings(family, task, ("landmarks",)))
    shape = (20, environment.spec.action_size)
    actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    is_position = np.array([landmark.kind == "position" for landmark in environment.spec.landmarks])

    def walk(restored_at: int | None) -> np.ndarray:
        states = [environment.reset(4, seed=0)["landmarks"]]
        for step, action in enumerate(actions):
            if step == restored_at:
                environment.reset(9, seed=0)
                environment.reset(4, seed=0)
                environment.replay(actions[:step])
            states.append(environment.step_chunk(action[None]).observation["landmarks"])
        return grid_ids(np.stack(states), states[0], 0.02, is_position)

    straight = walk(None)
    assert len(np.unique(straight)) > 1
    np.testing.assert_array_equal(walk(11), straight)
