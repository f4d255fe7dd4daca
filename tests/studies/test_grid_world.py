"""Values of the 2 x 2 grid against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from gipo_vla.studies.grid_world import ACTIONS, action_values, advantages, leaning, state_values

RIGHT, DOWN = ACTIONS.index("right"), ACTIONS.index("down")


def test_values_of_the_shortest_way() -> None:
    policy = np.zeros((3, 4))
    policy[0, RIGHT] = policy[1, DOWN] = policy[2, RIGHT] = 1
    np.testing.assert_allclose(state_values(policy), [-1.9, -1, -1, 0])
    # Up from S0 runs against the wall: -1 + 0.9 * -1.9.
    np.testing.assert_allclose(action_values(policy)[0], [-2.71, -1.9, -1.9, -2.71])


def test_values_of_the_uniform_policy() -> None:
    # S1 and S2 mirror each other: 0.55 v0 = -1 + 0.45 v1 and 0.55 v1 = -1 + 0.225 v0.
    policy = np.full((3, 4), 0.25)
    np.testing.assert_allclose(state_values(policy), [-800 / 161, -620 / 161, -620 / 161, 0])
    # Q(S0, right) = -1 + 0.9 * -620 / 161; less V(S0) = -800 / 161 that is 81 / 161.
    np.testing.assert_allclose(advantages(policy)[0], np.array([-81, 81, 81, -81]) / 161)


def test_advantages_are_zero_on_average_under_their_own_policy() -> None:
    policy = np.random.default_rng(0).dirichlet(np.ones(4), size=3)
    np.testing.assert_allclose((policy * advantages(policy)).sum(axis=1), 0, atol=1e-12)


def test_leaning() -> None:
    np.testing.assert_allclose(leaning("right", 0.7), [0.1, 0.7, 0.1, 0.1])
    assert leaning("left", 0.94).sum() == pytest.approx(1)
