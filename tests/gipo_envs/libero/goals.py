"""States that fulfil a task's goal, made by putting things where the goal says."""

from __future__ import annotations

from collections.abc import Iterator

import mujoco
import numpy as np

from gipo_envs.libero.simulation import EpisodeState, TaskSimulation

HEIGHTS = np.arange(0.3, -0.1, -0.001)
"""Metres above its target at which an object is tried, from above: it should touch, but not more."""


def fulfil(simulation: TaskSimulation, episode: EpisodeState) -> None:
    """Change the physics so that every part of the goal holds.

    Raises:
        AssertionError: one does not, wherever things were put.
    """
    simulation._give_turn(episode)
    for predicate in simulation._robosuite.parsed_problem["goal_state"]:
        assert any(_holds(simulation, predicate) for _ in _attempts(simulation, predicate)), predicate
    simulation.data.qvel[:] = 0
    mujoco.mj_forward(simulation.model, simulation.data)


def _holds(simulation: TaskSimulation, predicate: list[str]) -> bool:
    mujoco.mj_forward(simulation.model, simulation.data)
    return bool(simulation._robosuite._eval_predicate(predicate))


def _attempts(simulation: TaskSimulation, predicate: list[str]) -> Iterator[None]:
    kind, *names = predicate
    if kind in ("open", "close", "turnon", "turnoff"):
        yield from _joint_attempts(simulation, names[0])
    else:
        yield from _placing_attempts(simulation, *names)


def _joint_attempts(simulation: TaskSimulation, name: str) -> Iterator[None]:
    """Every joint of a drawer, door or knob at values over its range."""
    environment = simulation._robosuite
    part = environment.object_sites_dict.get(name) or environment.get_object(name)
    joints = [simulation.model.joint(joint) for joint in part.joints]
    for fraction in np.linspace(0, 1, 41):
        for joint in joints:
            low, high = joint.range
            simulation.data.qpos[joint.qposadr[0]] = low + fraction * (high - low)
        yield


def _placing_attempts(simulation: TaskSimulation, name: str, target: str) -> Iterator[None]:
    """An object at several heights over another one or over a region."""
    environment, data = simulation._robosuite, simulation.data
    joint = simulation.model.joint(environment.get_object(name).joints[-1]).qposadr[0]
    if target in environment.object_sites_dict:
        position = data.site(target).xpos.copy()
    else:
        position = data.body(environment.get_object(target).root_body).xpos.copy()
    for height in HEIGHTS:
        data.qpos[joint : joint + 3] = position + np.array([0, 0, height])
        yield
