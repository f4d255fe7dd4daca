"""Scripted experts: an observation to the action that solves a task, without learning.

For demonstrations only. An expert reads the observations that its family names (``observed_by``), whatever
the policy that is cloned from it will see, and is a pure function of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gipo_envs.errors import UserError
from gipo_envs.protocol import Observation

Expert = Callable[[Observation], NDArray[np.float32]]
"""Observation to action (A,) in [-1, 1]."""


def make_expert(family: str, task: str) -> Expert:
    """The expert of a task.

    Raises:
        UserError: the family has none.
    """
    require_experts(family)
    return _FAMILIES[family](task)


def observed_by(family: str) -> tuple[Literal["state", "proprio", "landmarks"], ...]:
    """What the experts of a family read."""
    return ("proprio", "landmarks") if family.startswith("libero_") else ("state",)


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

    def act(observation: Observation) -> NDArray[np.float32]:
        # A copy in double precision: they compute in the array that they are given.
        action = policy.get_action(observation["state"].astype(np.float64))
        return np.asarray(action, np.float32).clip(-1.0, 1.0)

    return act


def _point_reach(task: str) -> Expert:
    from gipo_envs.point_reach import CONTACT_RADIUS, STEP_LENGTH

    def act(observation: Observation) -> NDArray[np.float32]:
        state = observation["state"]
        to_object, object_to_goal = state[6:8], state[8:10]
        # In the reaching tasks the object is the point itself.
        touching = float(np.abs(to_object).max()) < CONTACT_RADIUS / 2
        wanted = object_to_goal if touching else to_object
        return (wanted / np.float32(STEP_LENGTH)).clip(-1.0, 1.0)

    return act


def _libero(suite: str) -> Callable[[str], Expert]:
    def of_task(task: str) -> Expert:
        from gipo_envs.libero.experts import make_expert

        return make_expert(suite, task)

    return of_task


_FAMILIES: dict[str, Callable[[str], Expert]] = {
    "metaworld": _metaworld,
    "point_reach": _point_reach,
    **{
        suite: _libero(suite)
        for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
    },
}
