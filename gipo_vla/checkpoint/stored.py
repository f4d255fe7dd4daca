"""What a checkpoint must hold before a run takes it over.

Whoever can change a file can change its checksum, too, so a checkpoint that is undamaged may still hold
anything. Everything that a run would fail over later, in the middle of an update or in a worker, is looked at
here, when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from gipo_envs import EnvironmentSpec
from gipo_envs.errors import UserError
from gipo_vla import foreign
from gipo_vla.replay.segment import SegmentBatch, SegmentLayout
from gipo_vla.rollout.episodes import EpisodePlan
from gipo_vla.rollout.records import EpisodeRecord

Count = Annotated[int, Field(ge=0, lt=2**53)]
Numbers = dict[str, float | None]


@dataclass(frozen=True)
class _Tasks:
    episodes: list[Count]
    recent: list[list[bool]]


@dataclass(frozen=True)
class _Learner:
    attempted: Count
    skipped: Count
    skipped_in_a_row: Count
    total_iterations: Annotated[int, Field(ge=1, lt=2**53)] = 1


@dataclass(frozen=True, kw_only=True)
class _Run:
    iteration: Count
    updates_done: list[Numbers]
    learner: _Learner
    tracker_id: Annotated[str, Field(pattern=r"^[\w-]{1,128}$")] | None
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class ClonedRun(_Run):
    """run.json of a cloning run."""

    held_losses: list[float]


@dataclass(frozen=True, kw_only=True)
class TrainingRun(_Run):
    """run.json of a training run."""

    env_steps: Count
    numerical_floor: dict[str, float] | None
    recent: list[EpisodeRecord]
    tasks: _Tasks
    world_size: Annotated[int, Field(ge=1, le=2**20)]
    environments_per_rank: Annotated[int, Field(ge=1, le=2**31)]


@dataclass(frozen=True)
class Rank:
    """rank.json."""

    dropped_segments: Count
    finished_members: list[tuple[Count, list[Count]]]
    lost_groups: list[Count]
    version: Count
    iteration: Count
    env_steps: Count
    decisions: Count
    faults: Count
    plans: list[EpisodePlan]
    following: list[EpisodePlan]
    episodes: list[EpisodeRecord]
    replay_rng: dict[str, Any]
    credit: dict[str, Any]
    group_tasks: list[tuple[Count, Count, Count, Count]]
    group_counts: dict[str, Count] = field(default_factory=dict)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read(path: Path, kind: Any) -> dict[str, Any]:
    """The values in one of a checkpoint's JSON files. Raises UserError: they are not as ``kind`` says, a
    class of this module; names the first that is not."""
    values = foreign.read_json(path)
    try:
        _adapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place} is {str(first['input'])[:60]}: {first['msg']}") from error
    return values


def check_tensors(path: Path, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """Raise a UserError unless tensors have the names and shapes of others, and are numbers."""
    for name in sorted(tensors.keys() ^ like.keys()):
        raise UserError(f"{path} has {'one' if name in tensors else 'no'} {name}, unlike this run's policy")
    for name, tensor in tensors.items():
        if tensor.shape != like[name].shape or not tensor.is_floating_point():
            raise UserError(
                f"{path}: {name} is {tensor.dtype} {tuple(tensor.shape)}, this run's {like[name].dtype} "
                f"{tuple(like[name].shape)}"
            )
    check_finite(path, tensors)


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise a UserError if a tensor holds something that is no number."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{path}: {name} holds values that are no numbers")


def check_segments(
    path: Path, batch: SegmentBatch, layout: SegmentLayout, bins: int, tasks: int, under_way: bool = False
) -> None:
    """Raise a UserError if stored segments hold what no actor writes.

    Args:
        bins: ids that a token can take.
        tasks: of the environment.
        under_way: the segments are still open: their length and their facts are not known yet.
    """
    columns = batch.arrays()
    if len({len(column) for column in columns.values()}) > 1:
        raise UserError(f"{path}: its arrays hold different numbers of segments")
    ranges = {"tokens": (0, bins - 1), "executed": (0, layout.chunk), "version": (0, 2**53)}
    ranges |= {"iteration": (0, 2**53)}
    if not under_way:
        ranges |= {"length": (1, layout.length), "task": (0, tasks - 1), "group": (-1, 2**53)}
        ranges |= dict.fromkeys(("env", "episode", "start"), (0, 2**53))
    for name, (least, most) in ranges.items():
        column = columns[name]
        if column.size and (column.min() < least or column.max() > most):
            raise UserError(f"{path}: {name} is outside of {least} to {most}")
    for name, column in columns.items():
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            raise UserError(f"{path}: {name} holds values that are no numbers")
    if not under_way:
        used = np.arange(layout.length) < columns["length"][:, None]
        if (columns["temperature"][used] <= 0).any() or (columns["executed"][used] < 1).any():
            raise UserError(f"{path}: a transition has no temperature, or no action")


def check_actor(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    values: Mapping[str, Any],
    layout: SegmentLayout,
    spec: EnvironmentSpec,
    envs: range,
) -> None:
    """Raise a UserError unless an actor can go on from its arrays and plain values.

    Args:
        path: of the arrays' file.
        envs: global ids of the rank's environments.
    """
    count = len(envs)
    each, any_number = (count,), (None,)
    expected: dict[str, tuple[Sequence[int | None], Any]] = {
        "position": (each, np.int64),
        "start": (each, np.int64),
        "return": (each, np.float64),
        "steps": (each, np.int64),
        "success": (each, np.bool_),
        "action_counts": (each, np.int64),
        "actions": ((None, spec.action_size), np.float32),
        "generator": (any_number, np.uint8),
    }
    for name, own in layout.fields.items():
        expected[f"open/{name}"] = ((count, *own.shape), own.dtype)
        expected |= {f"{part}/{name}": ((None, *own.shape), own.dtype) for part in ("closed", "waiting")}
    foreign.fitting(path, arrays, expected)
    counts, position = arrays["action_counts"], arrays["position"]
    in_range = ((counts >= 0) & (counts <= spec.actions_limit)).all() and counts.sum() == len(
        arrays["actions"]
    )
    in_range &= ((position >= 0) & (position < layout.length)).all() and (arrays["start"] >= 0).all()
    if not in_range or not np.isfinite(arrays["actions"]).all() or not np.isfinite(arrays["return"]).all():
        raise UserError(f"{path}: the positions or actions of its episodes are none of this environment's")
    _check_plans(path, values["plans"], spec, envs)
    _check_plans(path, values["following"], spec, envs)
    _check_tasks(path, values["episodes"], spec)


def _check_plans(path: Path, plans: Sequence[Mapping[str, Any]], spec: EnvironmentSpec, envs: range) -> None:
    first, stop = spec.training_keys
    good = len(plans) == len(envs) and all(
        plan["env"] == env
        and 0 <= plan["task"] < len(spec.tasks)
        and first <= plan["initial_state"] < stop
        and 0 <= plan["seed"] < 2**63
        and 1 <= plan["step_limit"] <= spec.step_limit
        and 0 <= plan["episode"] < 2**53
        and -1 <= plan["group"] < 2**53
        for plan, env in zip(plans, envs)
    )
    if not good:
        raise UserError(f"{path.parent / 'rank.json'}: its episodes are none of this environment's")


def check_run(path: Path, values: Mapping[str, Any], spec: EnvironmentSpec, updates: int) -> None:
    """Raise a UserError unless run.json is of a run on this environment.

    Args:
        updates: of an iteration; those of the one under way are fewer.
    """
    _check_tasks(path, values["recent"], spec)
    tasks = values["tasks"]
    if not len(tasks["episodes"]) == len(tasks["recent"]) == len(spec.tasks):
        raise UserError(f"{path}: tasks has not {len(spec.tasks)} tasks, as the environment has")
    if len(values["updates_done"]) > updates:
        raise UserError(f"{path}: updates_done has more than the {updates} updates of an iteration")


def _check_tasks(path: Path, records: Sequence[Mapping[str, Any]], spec: EnvironmentSpec) -> None:
    for record in records:
        if not 0 <= record["task"] < len(spec.tasks) or not foreign.is_number(record["episode_return"]):
            raise UserError(f"{path}: an episode is of a task that the environment does not have")
