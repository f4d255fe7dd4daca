"""A point in the square [-1, 1]^2 that is driven to a goal: an environment without MuJoCo.

It stands in for a simulator wherever the simulator is not the point: tests, smoke runs and examples of the
whole system learn something visible in seconds. It has what code around environments has to cope with:
several tasks, dense and sparse rewards, success, a step limit, proprioception and images.

Tasks: ``reach``, start and goal anywhere; ``reach-far``, from the left edge to the right edge; ``push``, an
object moves along while the point is near it, and has to get to the goal.

State (10,): point, object, goal, object - point, goal - object, each x and y. In the reaching tasks the
object is the point itself. Proprioception (2,): the point. Dense reward of an env step: 1 while the object
is at the goal, plus the progress of the step in units of the greatest step. The first term pays for staying
at the goal, the second says at once which action was good.

Landmarks (6,): point ("hand"), object and goal, each x and y, in metres if the square's side is 20 cm.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from gipo_envs.episode import EpisodicEnvironment
from gipo_envs.family import Expert, Family, WorkerCost
from gipo_envs.protocol import Environment, EnvironmentSettings, EnvironmentSpec, Landmark, Observation
from gipo_envs.registry import register
from gipo_envs.settings import FamilyFacts, build_spec

STEP_LENGTH = 0.15
"""Distance of an action of 1 in each direction."""
GOAL_RADIUS = 0.15
CONTACT_RADIUS = 0.2
"""The object of ``push`` moves with the point while it is nearer than this."""

LANDMARK_SCALE = 0.1
"""Metres of a landmark to a unit of the square: its steps are then as long as a robot's, and so a credit's
cells fit."""

FACTS = FamilyFacts(
    instructions={
        "reach": "move the point to the goal",
        "reach-far": "move the point to the goal on the other side",
        "push": "push the object to the goal",
    },
    cameras=("top", "near"),
    state_size=10,
    proprio_size=2,
    action_size=2,
    default_step_limit=40,
    # Progress sums to about 5, and staying at the goal for 30 steps adds at most 30.
    dense_reward_scale=0.1,
    frames_per_second=10.0,
    landmarks=tuple(
        Landmark(f"{thing} {axis}", "position") for thing in ("hand", "object", "goal") for axis in "xy"
    ),
)

_BACKGROUND = (235, 235, 230)
_GOAL_COLOUR = (70, 170, 90)
_OBJECT_COLOUR = (240, 150, 40)
_POINT_COLOUR = (40, 80, 200)


def make_spec(settings: EnvironmentSettings) -> EnvironmentSpec:
    """See ``gipo_envs.registry.make_spec``."""
    return build_spec(settings, FACTS)


def make(settings: EnvironmentSettings) -> Environment:
    """See ``gipo_envs.registry.make``."""
    return PointReach(settings, make_spec(settings))


class PointReach(EpisodicEnvironment[list[float]]):
    """See the module. The seed of a reset changes nothing: the dynamics draw no number."""

    def __init__(self, settings: EnvironmentSettings, spec: EnvironmentSpec) -> None:
        super().__init__(settings, spec, sparse=settings.reward == "sparse")
        self._pushing = False
        self._point = self._object = self._goal = (0.0, 0.0)

    def _begin(self, initial_state: int, seed: int) -> None:
        name = self._spec.tasks[self._task]
        self._pushing = name == "push"
        entropy = (zlib.crc32(name.encode()), initial_state)
        draw = np.random.default_rng(np.random.SeedSequence(entropy)).uniform
        if name == "reach-far":
            self._point = (draw(-1.0, -0.8), draw(-1.0, 1.0))
            self._goal = (draw(0.8, 1.0), draw(-1.0, 1.0))
            self._object = self._point
            return
        while True:
            self._point = (draw(-1.0, 1.0), draw(-1.0, 1.0))
            self._goal = (draw(-0.9, 0.9), draw(-0.9, 0.9))
            self._object = (draw(-0.8, 0.8), draw(-0.8, 0.8)) if self._pushing else self._point
            if _distance(self._object, self._goal) > 3 * GOAL_RADIUS:
                return

    def _prepare(self, actions: NDArray[np.float32]) -> list[list[float]]:
        prepared: list[list[float]] = actions.clip(-1.0, 1.0).tolist()
        return prepared

    def _look(self) -> Observation:
        (point_x, point_y), (object_x, object_y), (goal_x, goal_y) = self._point, self._object, self._goal
        things = (point_x, point_y, object_x, object_y, goal_x, goal_y)
        differences = (object_x - point_x, object_y - point_y, goal_x - object_x, goal_y - object_y)
        return {
            "state": np.array((*things, *differences), np.float32),
            "proprio": np.array(self._point, np.float32),
            "landmarks": np.array(things, np.float32) * np.float32(LANDMARK_SCALE),
        }

    def render(self, height: int, width: int) -> NDArray[np.uint8]:
        return self._frame("top", height, width)

    def _advance(self, action: list[float]) -> tuple[float, bool]:
        before = _distance(self._object, self._goal)
        if self._pushing:
            before += _distance(self._point, self._object)
        x, y = self._point
        new_x = min(max(x + STEP_LENGTH * action[0], -1.0), 1.0)
        new_y = min(max(y + STEP_LENGTH * action[1], -1.0), 1.0)
        if not self._pushing:
            self._object = (new_x, new_y)
        elif _distance(self._point, self._object) < CONTACT_RADIUS:
            object_x, object_y = self._object
            self._object = (
                min(max(object_x + new_x - x, -1.0), 1.0),
                min(max(object_y + new_y - y, -1.0), 1.0),
            )
        self._point = (new_x, new_y)
        to_goal = _distance(self._object, self._goal)
        after = to_goal + (_distance(self._point, self._object) if self._pushing else 0.0)
        success = to_goal < GOAL_RADIUS
        return (before - after) / STEP_LENGTH + float(success), success

    def _frame(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """(height, width, 3): ``top`` shows the square, ``near`` what is within 0.5 of the point."""
        centre, reach = (self._point, 0.5) if camera == "near" else ((0.0, 0.0), 1.1)
        x = centre[0] + reach * ((np.arange(width) + 0.5) * (2.0 / width) - 1.0)
        y = centre[1] - reach * ((np.arange(height) + 0.5) * (2.0 / height) - 1.0)
        frame = np.full((height, width, 3), _BACKGROUND, np.uint8)
        discs = [(self._goal, GOAL_RADIUS, _GOAL_COLOUR), (self._point, 0.07, _POINT_COLOUR)]
        if self._pushing:
            discs.insert(1, (self._object, 0.1, _OBJECT_COLOUR))
        for (disc_x, disc_y), radius, colour in discs:
            frame[(x[None, :] - disc_x) ** 2 + (y[:, None] - disc_y) ** 2 < radius**2] = colour
        return frame


def _distance(first: tuple[float, float], second: tuple[float, float]) -> float:
    # Not math.hypot: whether that is correctly rounded depends on the C library.
    x, y = first[0] - second[0], first[1] - second[1]
    return math.sqrt(x * x + y * y)


def make_expert(task: str) -> Expert:
    """An expert that walks to the object and carries it to the goal."""

    def act(observation: Observation) -> NDArray[np.float32]:
        state = observation["state"]
        to_object, object_to_goal = state[6:8], state[8:10]
        # In the reaching tasks the object is the point itself.
        touching = float(np.abs(to_object).max()) < CONTACT_RADIUS / 2
        wanted = object_to_goal if touching else to_object
        return (wanted / np.float32(STEP_LENGTH)).clip(-1.0, 1.0)

    return act


FAMILY = register(
    Family(
        "point_reach",
        make_spec,
        make,
        WorkerCost(20_000_000, env_step_seconds=2e-5, image_seconds=1e-4),
        needs_opengl=False,
        make_expert=make_expert,
    )
)
