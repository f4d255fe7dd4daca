"""Scripted experts for LIBERO: from what an observation's landmarks say to the next action of the hand.

An expert reads ``proprio`` and ``landmarks`` and remembers nothing: every action follows from where hand and
things are, so that one that slipped is grasped again, and a policy that sees the same can imitate it. A task
is made of a few motions, chosen by the predicate of its goal and the verb of its instruction:

    on, in                  reach, grasp, lift, place
    on, told to push        reach into, slide
    open                    reach, grasp, pull
    close                   reach behind, push
    turnon, turnoff         reach beside, turn

The first predicate that does not hold yet is worked at. Actions go through the OSC controller that the task's
own demonstrations went through: displacements of the hand of at most 5 cm and 0.5 rad.

Shape suffixes: none; positions are (3,) metres in the world frame.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from gipo_envs.errors import UserError
from gipo_envs.family import Expert
from gipo_envs.libero import catalogue
from gipo_envs.libero.landmarks import Goal, goals
from gipo_envs.libero.stepping import Floats
from gipo_envs.protocol import Observation

OBSERVATIONS: tuple[Literal["proprio"], Literal["landmarks"]] = ("proprio", "landmarks")
"""What an expert reads."""

POSITION_REACH, ROTATION_REACH = 0.05, 0.5
"""Metres and radians that an action of 1 stands for."""
GAIN = 1.5
"""Of the displacement that is left; the controller follows a goal with some delay."""

OPEN, CLOSE = -1.0, 1.0

HOVER = 0.10
"""Metres above its grip at which the hand comes to a thing."""
SLOPE = 5.0
"""Of the funnel through which the hand comes down: metres of height for a metre of distance."""
NEAR = 0.012
"""Metres from a point at which the hand is there."""
HELD = 0.018
"""Metres from hand to grip while a thing is held."""
SQUEEZE = 0.006
"""Metres by which the fingers may be wider apart than a thing that they are about to hold."""
RISE = 0.06
"""Metres below its path within which a hand moves sideways; lower, it rises first."""

BASKET_CLEARANCE, CLEARANCE = 0.19, 0.12
"""Metres above its region at which an object is carried there: over the walls of a container, and else."""
BASKET_RELEASE, RELEASE = 0.14, 0.04
"""Metres above its region at which it is let go."""
OVER = 0.025
"""Metres sideways within which an object is over its region."""

STANDOFF = 0.035
"""Metres behind what is to be pushed at which the closed fingers come down."""
SLOWLY = 0.02
"""Metres ahead of the hand to which it is sent where it would ride over what it is to move."""
OVERSHOOT = 0.03
"""Metres beyond the place where a part's goal is met to which it is moved."""

DOWN = np.array([0.0, 0.0, -1.0])
DEFAULT_ACROSS = np.array([0.0, 1.0])
"""The line along which the fingers close at the start of an episode."""


@dataclass(frozen=True)
class Hand:
    """The hand as the proprioception has it."""

    position: Floats
    turn: Floats
    """(3, 3) columns: axes of the hand. Its fingers close along the second; the third leaves its palm."""
    opening: float
    """Metres between the fingers."""


@dataclass(frozen=True)
class Aim:
    """Where the hand is to be."""

    position: Floats
    gripper: float
    across: Floats
    """(2,) the line along which the fingers close."""


Motion = Callable[[Hand, Goal], Aim]


def make_expert(suite: str, task: str) -> Expert:
    """The expert of a task: observation to action (7,) in [-1, 1].

    Raises:
        UserError: no motion is known for a predicate of its goal.
    """
    entry = catalogue.task(suite, task)
    motions = [_motion(predicate, entry) for predicate in _predicates(entry)]

    def act(observation: Observation) -> NDArray[np.float32]:
        hand = read_hand(observation["proprio"])
        todo = zip(motions, goals(observation["landmarks"]))
        aims = (motion(hand, goal) for motion, goal in todo if not goal.holds)
        return action_towards(hand, next(aims, Aim(hand.position, OPEN, DEFAULT_ACROSS)))

    return act


def _predicates(task: catalogue.Task) -> list[list[str]]:
    """The words of each predicate of a task's goal."""
    goal = task.definition.read_text().partition("(:goal")[2]
    words = (found.lower().split() for found in re.findall(r"\(([^()]+)\)", goal))
    return [found for found in words if found]


def _motion(predicate: list[str], task: catalogue.Task) -> Motion:
    name = predicate[0]
    if name in ("on", "in"):
        if task.instruction.startswith("push"):
            return slide
        return partial(pick_and_place, walls=name == "in")
    motions: dict[str, Motion] = {"open": pull, "close": push_part, "turnon": turn, "turnoff": turn}
    if name not in motions:
        raise UserError(f"{task.suite} {task.name} has no scripted expert: its goal is {' '.join(predicate)}")
    return motions[name]


# --------------------------------------------------------------------------------------------------- motions


def pick_and_place(hand: Hand, goal: Goal, walls: bool) -> Aim:
    """Put an object into a container with walls, or onto something."""
    clearance, release = (BASKET_CLEARANCE, BASKET_RELEASE) if walls else (CLEARANCE, RELEASE)
    height = float(goal.object[2] - goal.region[2])
    if _distance(goal.object, goal.region) < OVER and height < release:
        return let_go(hand, goal)
    if is_held(hand, goal):
        return carry(hand, goal, clearance, release)
    return grasp(hand, goal)


def pull(hand: Hand, goal: Goal) -> Aim:
    """Hold a handle, and move it to where the goal is met and a little farther."""
    if not is_held(hand, goal):
        return grasp(hand, goal)
    return Aim(hand.position + _beyond(goal) - goal.grip, CLOSE, goal.across)


def slide(hand: Hand, goal: Goal) -> Aim:
    """Take a plate over the table to its region with closed fingers inside its rim.

    Not from behind: there may be no room for the hand (the cabinet), and what is pushed turns away, while
    what is drawn follows.
    """
    inside = _distance(goal.grip, goal.object) - NEAR
    way = goal.region - goal.object
    if _distance(hand.position, goal.object) < inside and hand.position[2] < goal.grip[2] + NEAR:
        way *= min(1.0, SLOWLY / max(_distance(goal.region, goal.object), 1e-9))
        place = np.array([*(hand.position + way)[:2], goal.grip[2] - NEAR / 2])
        return Aim(place, CLOSE, DEFAULT_ACROSS)
    return reach(hand, np.array([*goal.object[:2], goal.grip[2]]), DEFAULT_ACROSS, CLOSE)


def push_part(hand: Hand, goal: Goal) -> Aim:
    """Push a handle to where the goal is met, and a little farther."""
    return push(hand, goal.grip, _beyond(goal) - goal.grip, goal.width / 2 + STANDOFF)


def turn(hand: Hand, goal: Goal) -> Aim:
    """Push a lever across its length, on its way around the hinge."""
    across = np.array([*goal.across, 0.0])
    way = goal.region - goal.grip
    return push(hand, goal.grip, across * math.copysign(1.0, float(across @ way)), goal.width / 2 + STANDOFF)


def reach(hand: Hand, point: Floats, across: Floats, gripper: float) -> Aim:
    """Come down to a point through a funnel: high where the hand is far from it, or turned another way."""
    askew = max(0.0, float(np.linalg.norm(_turn_left(hand, across))) - 0.1)
    distance = _distance(hand.position, point)
    height = min(HOVER, SLOPE * max(0.0, distance + 0.1 * askew - NEAR))
    return _along(hand, hand.position, point, point[2] + height, gripper, across)


def grasp(hand: Hand, goal: Goal) -> Aim:
    """Reach a thing's grip with open fingers, and close them there."""
    near = 2 * NEAR if hand.opening < goal.width + 2 * SQUEEZE else NEAR
    left = hand.position - goal.grip
    if math.hypot(left[0], left[1]) < near and abs(left[2]) < near:
        return Aim(goal.grip, CLOSE, goal.across)
    return reach(hand, goal.grip, goal.across, OPEN)


def carry(hand: Hand, goal: Goal, clearance: float, release: float) -> Aim:
    """Lift a held object, bring it over its region, and lower it."""
    distance = _distance(goal.object, goal.region)
    height = release - 0.03 + min(clearance - release + 0.03, SLOPE * max(0.0, distance - OVER / 2))
    offset = hand.position - goal.object
    return _along(hand, goal.object, goal.region, goal.region[2] + height, CLOSE, goal.across, offset)


def let_go(hand: Hand, goal: Goal) -> Aim:
    """Open the fingers, and rise once they are."""
    is_open = hand.opening > goal.width + 2 * SQUEEZE
    rise = np.array([0.0, 0.0, 0.05 if is_open else 0.0])
    return Aim(hand.position + rise, OPEN, goal.across)


def push(hand: Hand, centre: Floats, way: Floats, standoff: float) -> Aim:
    """Come down behind something with closed fingers, and move along the way."""
    direction = np.array([way[0], way[1], 0.0])
    direction /= max(float(np.linalg.norm(direction)), 1e-9)
    left = hand.position - centre
    along = float(left @ direction)
    aside = math.hypot(*(left - along * direction)[:2])
    is_behind = along < 0 and aside < 2 * NEAR and abs(left[2]) < 2 * NEAR
    if is_behind:
        # Back to the line while moving on: what is pushed off its middle turns away.
        goal = centre - direction * max(0.0, -along - POSITION_REACH)
        return Aim(goal, CLOSE, DEFAULT_ACROSS)
    return reach(hand, centre - direction * standoff, DEFAULT_ACROSS, CLOSE)


def is_held(hand: Hand, goal: Goal) -> bool:
    """Whether the fingers are closed around a thing's grip."""
    at_grip = float(np.linalg.norm(hand.position - goal.grip)) < HELD
    return at_grip and hand.opening < goal.width + SQUEEZE


# ------------------------------------------------------------------------------------------------- geometry


def read_hand(proprio: NDArray[np.float32]) -> Hand:
    """The hand of a proprioception (8,)."""
    values = proprio.astype(np.float64)
    return Hand(values[:3], Rotation.from_rotvec(values[3:6]).as_matrix(), float(values[6] - values[7]))


def action_towards(hand: Hand, aim: Aim) -> NDArray[np.float32]:
    """The action (7,) that moves the hand to where it is to be, palm down."""
    displacement = (aim.position - hand.position) * (GAIN / POSITION_REACH)
    rotation = _turn_left(hand, aim.across) / ROTATION_REACH
    action = np.array([*displacement, *rotation, aim.gripper], np.float32)
    return action.clip(-1.0, 1.0)


def _along(
    hand: Hand,
    start: Floats,
    end: Floats,
    height: float,
    gripper: float,
    across: Floats,
    offset: Floats | float = 0.0,
) -> Aim:
    """Move ``start``, which the hand is ``offset`` from, over ``end`` at a height; rise before moving."""
    share = min(max((start[2] - height + RISE) / (RISE / 2), 0.0), 1.0)
    sideways = start[:2] + share * (end[:2] - start[:2])
    return Aim(np.array([*sideways, height]) + offset, gripper, across)


def _beyond(goal: Goal) -> Floats:
    """The region of a part, and a little farther on the way to it."""
    way = goal.region - goal.grip
    return goal.region + way * (OVERSHOOT / max(float(np.linalg.norm(way)), 1e-9))


def _distance(one: Floats, other: Floats) -> float:
    """Metres sideways."""
    return math.hypot(one[0] - other[0], one[1] - other[1])


def _turn_left(hand: Hand, across: Floats) -> Floats:
    """(3,) axis times angle to palm down with the fingers along a line, whichever way round is nearer."""
    second = np.array([*across, 0.0])
    if float(second @ hand.turn[:, 1]) < 0:
        second = -second
    palm_down = np.stack([np.cross(second, DOWN), second, DOWN], axis=1)
    vector: Floats = Rotation.from_matrix(palm_down @ hand.turn.T).as_rotvec()
    return vector
