"""Where a task of LIBERO stands, in numbers: for policies without cameras, experts and credits.

    hand x, y, z       position of the hand, metres
    gripper closed     1 while the fingers are less than half of their range apart

and for each predicate of the goal, number n:

    goal n object      x, y, z of the thing that the predicate is about; of a part with a joint (a drawer, a
                       knob) the place where a hand holds it
    goal n reach       x, y, z from the hand to its grip: where the fingers close around it, or push it
    goal n across      x, y of a horizontal unit vector: the line along which the fingers close
    goal n way         x, y, z from the object to its region, where it is to be; of a part, from its grip to
                       where that is once the goal is met
    goal n width       metres of what lies between the fingers
    goal n joint       the joint's position that the predicate reads, metres or radians; 0 without one
    goal n holds       1 while the predicate is true

The suite's greatest number of predicates decides the length; a task with fewer has zeros behind them. Grips
are not LIBERO's: they are derived once from the collision geometry (``grips``). Differences are given as
such, because what decides an action is centimetres between things that may be anywhere on a table, and a
small network would have to learn to subtract.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gipo_envs.libero.catalogue import GOAL_PREDICATES
from gipo_envs.protocol import Landmark, positions

if TYPE_CHECKING:  # a spec is made without a simulator
    from gipo_envs.libero.grips import Grip
    from gipo_envs.libero.stepping import Floats, View

HALF_OPEN = 0.04
"""Metres between the fingers, of 0.08."""

HAND = slice(0, 3)
GOALS_START = 4
GOAL_SIZE = 14


def names(suite: str) -> tuple[Landmark, ...]:
    """The landmarks of a suite's tasks."""
    return (
        *positions("hand"),
        Landmark("gripper closed", "truth"),
        *(landmark for number in range(GOAL_PREDICATES[suite]) for landmark in _of_goal(f"goal {number}")),
    )


def _of_goal(goal: str) -> tuple[Landmark, ...]:
    return (
        *positions(f"{goal} object", f"{goal} reach"),
        Landmark(f"{goal} across x", "direction"),
        Landmark(f"{goal} across y", "direction"),
        *positions(f"{goal} way"),
        Landmark(f"{goal} width", "position"),
        Landmark(f"{goal} joint", "position"),
        Landmark(f"{goal} holds", "truth"),
    )


@dataclass(frozen=True)
class Goal:
    """What the landmarks say of one predicate; positions (3,) in the world frame."""

    object: Floats
    grip: Floats
    across: Floats
    """(2,)"""
    region: Floats
    width: float
    joint: float
    holds: bool


def goals(values: NDArray[np.float32]) -> list[Goal]:
    """The predicates of an observation's landmarks (F,), in the order of the task's definition."""
    blocks = values[GOALS_START:].astype(np.float64).reshape(-1, GOAL_SIZE)
    hand = values[HAND].astype(np.float64)
    return [
        Goal(b[0:3], hand + b[3:6], b[6:8], b[0:3] + b[8:11], float(b[11]), float(b[12]), bool(b[13]))
        for b in blocks
        if b[6:8].any()  # zeros stand behind the last predicate
    ]


def read(robosuite: Any, view: View, suite: str, grips: list[Grip]) -> NDArray[np.float32]:
    """Landmarks of the state in which robosuite's data is, right after a step.

    Args:
        grips: of each predicate of the goal, from ``grips.of_goal``.
    """
    values = np.zeros(GOALS_START + GOAL_SIZE * GOAL_PREDICATES[suite], np.float32)
    values[HAND] = view.hand_position
    values[3] = view.gripper[0] - view.gripper[1] < HALF_OPEN
    predicates = robosuite.parsed_problem["goal_state"]
    for predicate, grip, block in zip(predicates, grips, values[GOALS_START:].reshape(-1, GOAL_SIZE)):
        data = robosuite.sim.data._data
        thing, place, across = grip.place(data)
        block[0:3], block[3:6], block[6:8] = thing, place - view.hand_position, across
        block[8:11] = grip.region(data) - thing
        block[11], block[12] = grip.width, grip.joint(data)
        block[13] = bool(robosuite._eval_predicate(predicate))
    return values
