"""A 2 x 2 grid small enough that everything about it is exact.

    S0  S1        start S0, absorbing goal in the bottom right corner
    S2  goal      reward -1 a step, gamma 0.9, a step against a wall stays where it is

Policies are arrays (3, 4): the probabilities of ACTIONS in S0, S1 and S2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ACTIONS = ("up", "right", "down", "left")
GAMMA = 0.9
REWARD = -1.0
STATES = 3
GOAL = 3

NEXT_STATE = np.array(
    [
        # up, right, down, left
        [0, 1, 2, 0],  # S0, top left
        [1, 1, GOAL, 0],  # S1, top right
        [0, GOAL, 2, 2],  # S2, bottom left
    ]
)


def state_values(policy: Array) -> Array:
    """V of S0, S1, S2 and the goal: the solution of (I - gamma P) V = r."""
    transitions = np.zeros((STATES, STATES + 1))
    for state in range(STATES):
        np.add.at(transitions[state], NEXT_STATE[state], policy[state])
    values = np.linalg.solve(np.eye(STATES) - GAMMA * transitions[:, :STATES], np.full(STATES, REWARD))
    return np.append(values, 0.0)


def action_values(policy: Array) -> Array:
    """Q (3, 4) of ``policy``."""
    return REWARD + GAMMA * state_values(policy)[NEXT_STATE]


def advantages(policy: Array) -> Array:
    """A = Q - V, (3, 4); its mean under the policy is 0 in every state."""
    return action_values(policy) - state_values(policy)[:STATES, None]


def leaning(action: str, probability: float) -> Array:
    """Probabilities of the four actions: this for ``action``, the rest shared equally by the others."""
    probabilities = np.full(len(ACTIONS), (1 - probability) / (len(ACTIONS) - 1))
    probabilities[ACTIONS.index(action)] = probability
    return probabilities
