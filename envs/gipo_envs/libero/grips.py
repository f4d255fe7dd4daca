"""Where a hand holds the things of a goal, derived once a task from their collision geometry.

A grip is fixed to a body: a point, and the line along which the fingers close. Of an object the line is the
hand's own (the world's y) where the object is narrow enough, else x; an object that is too wide both ways (a
bowl, a plate) is held by its rim. Of a part with a joint the point is the handle: of a drawer what sticks out
farthest, of a knob or a door what is farthest from the hinge.

Shape suffix: N corners of collision geoms.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import mujoco
import numpy as np

from gipo_envs.libero.stepping import Floats

WIDEST = 0.072
"""Metres that fit between the open fingers (0.08) with something to spare."""
FINGERTIP = 0.022
"""Metres from an object's top down to where the fingers close."""
FLOOR_DISTANCE = 0.012
"""Metres from an object's bottom up to the lowest place at which they do."""
RIM = 0.004
"""Metres from the outside of a rim to its middle."""
RIM_DEPTH = 0.016
"""Metres from a rim's top down to where the fingers close."""
HIGHEST = 0.012
"""Metres below the top of a turning part within which its handle is looked for."""

_COLLISION_GROUP = 0
_ACROSS = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
"""Lines along which the fingers close, the preferred one first."""


@dataclass(frozen=True)
class Joint:
    """What a predicate reads of a part."""

    address: int
    """Into MuJoCo's positions."""
    goal: float
    """A position at which the predicate holds, metres or radians."""
    slides: bool
    axis: Floats
    """(3,) in the frame of the part's body."""
    anchor: Floats
    """(3,) a point of a hinge's axis, in that frame."""


@dataclass(frozen=True)
class Grip:
    """How to hold the thing of one predicate."""

    body: int
    point: Floats
    """(3,) where the fingers close, in the frame of the body."""
    across: Floats
    """(3,) the line along which they do, in that frame."""
    width: float
    target: tuple[str, int] | None
    """``("site" or "body", number)`` of where the object is to be; None for a part with a joint."""
    part: Joint | None

    def place(self, data: Any) -> tuple[Floats, Floats, Floats]:
        """Object (3,), grip (3,) and line (2,) in MuJoCo's present state, world frame."""
        origin, turn = _pose(data, self.body)
        grip = origin + turn @ self.point
        line = (turn @ self.across)[:2]
        # A line has two directions: the one nearer to the diagonal, so that neither of the hand's two
        # usual ones, y and x, lies where it would jump.
        line = line / max(float(np.linalg.norm(line)), 1e-9) * (1.0 if line.sum() >= 0 else -1.0)
        return (origin if self.part is None else grip), grip, line

    def region(self, data: Any) -> Floats:
        """(3,) where the object, or a part's grip, is to be."""
        if self.target is not None:
            kind, number = self.target
            place: Floats = (data.site_xpos if kind == "site" else data.xpos)[number]
            return place
        part = self.part
        assert part is not None
        origin, turn = _pose(data, self.body)
        way = part.goal - self.joint(data)
        if part.slides:
            return origin + turn @ (self.point + way * part.axis)
        return origin + turn @ (part.anchor + _rotated(self.point - part.anchor, part.axis, way))

    def joint(self, data: Any) -> float:
        """The joint's position; 0 without one."""
        return 0.0 if self.part is None else float(data.qpos[self.part.address])


def of_goal(robosuite: Any) -> list[Grip]:
    """The grips of a task's predicates, in order.

    Args:
        robosuite: the task's environment, right after a reset: things stand as they do in an episode.
    """
    return [_of_predicate(robosuite, *predicate) for predicate in robosuite.parsed_problem["goal_state"]]


def _of_predicate(robosuite: Any, name: str, thing: str, target: str | None = None) -> Grip:
    model, data = robosuite.sim.model._model, robosuite.sim.data._data
    if target is None:
        return _of_part(robosuite, model, data, name, thing)
    is_site = target in robosuite.object_sites_dict
    place = ("site", model.site(target).id) if is_site else ("body", robosuite.obj_body_id[target])
    body = robosuite.obj_body_id[thing]
    origin, turn = _pose(data, body)
    geoms = _collision_geoms(model, _subtree(model, body))
    corners = _corners(model, data, geoms)
    low, high = corners.min(axis=0), corners.max(axis=0)
    point = (low + high) / 2
    point[2] = max(high[2] - FINGERTIP, low[2] + FLOOR_DISTANCE)
    # What lies between the fingers is only what is as high as they are: the neck of a bottle.
    boxes = [_corners(model, data, [geom]) for geom in geoms]
    held = [box for box in boxes if box[:, 2].min() <= point[2] <= box[:, 2].max()]
    extent = np.ptp(np.concatenate(held or boxes), axis=0)
    across, width = _ACROSS[0], float(extent[1])
    if width > WIDEST and extent[0] <= WIDEST:
        across, width = _ACROSS[1], float(extent[0])
    if width > WIDEST:
        point[1] = high[1] - RIM
        point[2] = max(high[2] - RIM_DEPTH, low[2] + FLOOR_DISTANCE)
        width = RIM
    return Grip(body, turn.T @ (point - origin), turn.T @ across, width, place, None)


def _of_part(robosuite: Any, model: Any, data: Any, predicate: str, thing: str) -> Grip:
    site = robosuite.object_sites_dict.get(thing)  # of a fixture's part
    owner = site or robosuite.get_object(thing)
    fixture = robosuite.get_object(robosuite.object_states_dict[thing].parent_name) if site else owner
    ranges = fixture.object_properties["articulation"]
    joint = model.joint(owner.joints[0])
    body = int(joint.bodyid[0])
    slides = bool(joint.type[0] == mujoco.mjtJoint.mjJNT_SLIDE)
    axis, anchor = joint.axis.copy(), joint.pos.copy()
    low, high = joint.range
    goal = float(np.clip(np.mean(ranges[f"default_{predicate}_ranges"]), low, high))
    origin, turn = _pose(data, body)
    geoms = _collision_geoms(model, {body})
    boxes = [turn.T @ (_corners(model, data, [g]) - origin).T for g in geoms]  # (3, 8) each, body frame
    centres = np.array([box.mean(axis=1) for box in boxes])
    if slides:
        outwards = axis * np.sign(low + high)
        handle = int(np.argmax(centres @ outwards))
        across = axis
    else:
        tops = np.array([(turn @ box)[2].max() for box in boxes])
        radius = centres - anchor
        radius -= np.outer(radius @ axis, axis)
        reach = np.where(tops > tops.max() - HIGHEST, np.linalg.norm(radius, axis=1), -1.0)
        handle = int(np.argmax(reach))
        across = np.cross(axis, radius[handle])
        across /= np.linalg.norm(across)
    part = Joint(int(joint.qposadr[0]), goal, slides, axis, anchor)
    return Grip(body, centres[handle], across, float(np.ptp(across @ boxes[handle])), None, part)


def _pose(data: Any, body: int) -> tuple[Floats, Floats]:
    return data.xpos[body], data.xmat[body].reshape(3, 3)


def _subtree(model: Any, body: int) -> set[int]:
    """A body and the bodies on it."""
    inside = {body}
    for child in range(body + 1, model.nbody):  # a parent's number is less than its children's
        if int(model.body_parentid[child]) in inside:
            inside.add(child)
    return inside


def _collision_geoms(model: Any, bodies: set[int]) -> list[int]:
    of_bodies = np.isin(model.geom_bodyid, list(bodies))
    chosen: list[int] = np.flatnonzero(of_bodies & (model.geom_group == _COLLISION_GROUP)).tolist()
    return chosen


def _corners(model: Any, data: Any, geoms: list[int]) -> Floats:
    """(N, 3) corners of the geoms' bounding boxes, world frame."""
    signs = np.array(list(product((-1.0, 1.0), repeat=3)))
    parts = []
    for geom in geoms:
        centre, half = model.geom_aabb[geom].reshape(2, 3)
        parts.append(data.geom_xpos[geom] + (centre + signs * half) @ data.geom_xmat[geom].reshape(3, 3).T)
    return np.concatenate(parts)


def _rotated(vector: Floats, axis: Floats, angle: float) -> Floats:
    """A vector turned about a unit axis (Rodrigues' formula)."""
    cosine, sine = np.cos(angle), np.sin(angle)
    turned: Floats = vector * cosine + np.cross(axis, vector) * sine + axis * (axis @ vector) * (1.0 - cosine)
    return turned
