"""Scripted experts: a task's state vector to the action that solves it, without learning.

For demonstrations only. An expert reads ``Observation["state"]`` (float32, the goal included), whatever the
policy that is cloned from it will see, and is a pure function of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gipo_envs.errors import UserError

Expert = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""State (S,) to action (A,) in [-1, 1]."""


def make_expert(family: str, task: str) -> Expert:
    """The expert of a task.

    Raises:
        UserError: the family has none.
    """
    require_experts(family)
    return _FAMILIES[family](task)


def require_experts(family: str) -> None:
    """Refuse a family without experts.

    Raises:
        UserError: naming those that have some.
    """
    if family not in _FAMILIES:
        raise UserError(
            f"{family} has no scripted experts (those of {', '.join(sorted(_FAMILIES))} do): take recorded "
            "demonstrations instead, demonstrations=libero_hdf5 or demonstrations=lerobot"
        )


def _metaworld(task: str) -> Expert:
    """metaworld's own policy for the task, its output cut to the range of actions (it goes far beyond)."""
    from metaworld.policies import ENV_POLICY_MAP  # imports MuJoCo

    # They say so at every step; it is what the cut is for.
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
    policy = ENV_POLICY_MAP[task]()

    def act(state: NDArray[np.float32]) -> NDArray[np.float32]:
        # A copy in double precision: they compute in the array that they are given.
        action = policy.get_action(state.astype(np.float64))
        return np.asarray(action, np.float32).clip(-1.0, 1.0)

    return act


def _point_reach(task: str) -> Expert:
    from gipo_envs.point_reach import CONTACT_RADIUS, STEP_LENGTH

    def act(state: NDArray[np.float32]) -> NDArray[np.float32]:
        to_object, object_to_goal = state[6:8], state[8:10]
        # In the reaching tasks the object is the point itself.
        touching = float(np.abs(to_object).max()) < CONTACT_RADIUS / 2
        wanted = object_to_goal if touching else to_object
        return (wanted / np.float32(STEP_LENGTH)).clip(-1.0, 1.0)

    return act


_FAMILIES: dict[str, Callable[[str], Expert]] = {"metaworld": _metaworld, "point_reach": _point_reach}
