"""Where a task of LIBERO stands, in numbers: for credits that compare states (GraphGPO and others).

    hand x, y, z     position of the hand, metres
    gripper closed   1 while the fingers are less than half of their range apart
    goal n x, y, z   for each predicate of the goal: its object's position relative to its target, metres;
                     without a target (a drawer to open, a stove to turn on) the joint's position and zeros
    goal n holds     1 while that predicate is true

The suite's greatest number of predicates decides the length; a task with fewer has zeros behind them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gipo_envs.libero.catalogue import GOAL_PREDICATES
from gipo_envs.protocol import Landmark, positions

if TYPE_CHECKING:  # a spec is made without a simulator
    from gipo_envs.libero.stepping import Floats, View

HALF_OPEN = 0.04
"""Metres between the fingers, of 0.08."""


def names(suite: str) -> tuple[Landmark, ...]:
    """The landmarks of a suite's tasks."""
    goals = range(GOAL_PREDICATES[suite])
    return (
        *positions("hand"),
        Landmark("gripper closed", "truth"),
        *positions(*(f"goal {number}" for number in goals)),
        *(Landmark(f"goal {number} holds", "truth") for number in goals),
    )


def read(robosuite: Any, view: View, suite: str) -> NDArray[np.float32]:
    """Landmarks of the state in which robosuite's data is, right after a step."""
    count = GOAL_PREDICATES[suite]
    places, truths = np.zeros((count, 3)), np.zeros(count)
    for number, predicate in enumerate(robosuite.parsed_problem["goal_state"]):
        places[number] = _place(robosuite, *predicate[1:])
        truths[number] = bool(robosuite._eval_predicate(predicate))
    closed = view.gripper[0] - view.gripper[1] < HALF_OPEN
    return np.concatenate([view.hand_position, [closed], places.ravel(), truths], dtype=np.float32)


def _place(robosuite: Any, thing: str, target: str | None = None) -> Floats:
    """Of an object relative to its target, or of the joint of a fixture's part."""
    states = robosuite.object_states_dict
    if target is not None:
        place: Floats = states[thing].get_geom_state()["pos"] - states[target].get_geom_state()["pos"]
        return place
    owner = robosuite.object_sites_dict.get(thing) or robosuite.get_object(thing)
    joint = robosuite.sim.data.qpos[robosuite.sim.model.get_joint_qpos_addr(owner.joints[0])]
    return np.array([joint, 0.0, 0.0])
