"""From ``EnvironmentSettings`` and a family's facts to an ``EnvironmentSpec``, refusing what is wrong.

Imports no simulator: the trainer's main process calls this to validate settings and to size buffers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from gipo_envs import image_formats
from gipo_envs.errors import UserError, nearest
from gipo_envs.protocol import (
    EVALUATION_KEYS_START,
    ArraySpec,
    CameraSettings,
    EnvironmentSettings,
    EnvironmentSpec,
    Landmark,
)

OBSERVATIONS = ("state", "proprio", "images", "landmarks")
REWARDS = ("dense", "sparse")
QUALITIES = ("fast", "default")
EVALUATION_STATES = ("published", "sampled")


@dataclass(frozen=True)
class FamilyFacts:
    """What all tasks of a family share."""

    instructions: Mapping[str, str]
    """Task name -> instruction; its keys are the known tasks, in order."""
    cameras: tuple[str, ...]
    state_size: int
    proprio_size: int
    action_size: int
    frames_per_second: float
    default_step_limit: int
    """Env steps."""
    greatest_step_limit: int | None = None
    """Env steps; None: no limit of the simulator's own."""
    dense_reward_scale: float = 1.0
    sparse_reward_scale: float = 1.0
    task_groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Group name -> task names, besides ``all``."""
    landmarks: tuple[Landmark, ...] = ()
    """See ``EnvironmentSpec``."""
    evaluation_ends_on_success: bool = False
    """See ``EnvironmentSpec``."""
    published_states: int = 0
    """Initial states of each task that a published evaluation uses, the first of the evaluation keys; 0:
    there is no such list, and every key is the task's own sampler's."""


def build_spec(settings: EnvironmentSettings, facts: FamilyFacts) -> EnvironmentSpec:
    """Check every setting and fill in the family's defaults.

    Raises:
        UserError: with one line that names the setting, its value and what is expected.
    """
    tasks = resolve_tasks(settings.task, facts)
    _check_choices("observations", settings.observations, OBSERVATIONS)
    observed = ("task", *settings.observations)
    _check_choice("reward", settings.reward, REWARDS)
    if settings.action_repeat < 1:
        raise UserError(f"action_repeat must be at least 1 env step, got {settings.action_repeat}")
    step_limit = facts.default_step_limit if settings.step_limit is None else settings.step_limit
    if step_limit < 1:
        raise UserError(f"step_limit must be at least 1 env step, got {step_limit}")
    if facts.greatest_step_limit is not None and step_limit > facts.greatest_step_limit:
        raise UserError(
            f"step_limit {step_limit} is above the {facts.greatest_step_limit} env steps "
            f"that {settings.family} itself allows"
        )
    sparse = settings.reward == "sparse"
    reward_scale = settings.reward_scale
    if reward_scale is None:
        reward_scale = facts.sparse_reward_scale if sparse else facts.dense_reward_scale
    if not (math.isfinite(reward_scale) and reward_scale > 0):
        raise UserError(f"reward_scale must be positive and finite, got {reward_scale}")

    _check_choice("evaluation_states", settings.evaluation_states, EVALUATION_STATES)
    sampled = EVALUATION_KEYS_START + facts.published_states, 2 * EVALUATION_KEYS_START
    published = (EVALUATION_KEYS_START, sampled[0]) if facts.published_states else sampled
    evaluation_keys = published if settings.evaluation_states == "published" else sampled

    arrays = {
        "task": ArraySpec((), "int64"),
        "state": ArraySpec((facts.state_size,), "float32"),
        "proprio": ArraySpec((facts.proprio_size,), "float32"),
        "landmarks": ArraySpec((len(facts.landmarks),), "float32"),
    }
    if "images" in settings.observations:
        arrays["images"] = ArraySpec(_images_shape(settings.camera, facts), "uint8")
    return EnvironmentSpec(
        tasks=tasks,
        instructions=tuple(facts.instructions[task] for task in tasks),
        observation={name: arrays[name] for name in ("task", *OBSERVATIONS) if name in observed},
        action_size=facts.action_size,
        step_limit=step_limit,
        action_repeat=settings.action_repeat,
        end_on_success=sparse if settings.end_on_success is None else settings.end_on_success,
        reward_scale=reward_scale,
        frames_per_second=facts.frames_per_second,
        landmarks=facts.landmarks,
        evaluation_ends_on_success=facts.evaluation_ends_on_success,
        training_keys=evaluation_keys if settings.train_on_evaluation_states else (0, EVALUATION_KEYS_START),
        evaluation_keys=evaluation_keys,
    )


def resolve_tasks(task: str | int | tuple[str | int, ...], facts: FamilyFacts) -> tuple[str, ...]:
    """Task names of a name or number, of several, or of a group's name.

    Raises:
        UserError: an unknown or repeated task, or none at all.
    """
    if isinstance(task, str) and task in facts.task_groups:
        return facts.task_groups[task]
    if task == "all":
        return tuple(facts.instructions)
    given = (task,) if isinstance(task, (str, int)) else tuple(task)
    if not given:
        raise UserError("task is empty: name one task, several, or a group")
    names = tuple(_task_name(one, facts) for one in given)
    known = {*facts.instructions, *(facts.task_groups if isinstance(task, str) else ())}
    for name in names:
        if name not in facts.instructions:
            raise UserError(f"unknown task {name!r}; {nearest(name, known)}")
    if len(set(names)) < len(names):
        raise UserError(f"task names the same task twice: {', '.join(names)}")
    return names


def _task_name(task: str | int, facts: FamilyFacts) -> str:
    """A task's name, itself or by its number in the family's order (an argument of a command may be text)."""
    if not str(task).isdecimal():
        return str(task)
    names = tuple(facts.instructions)
    if int(task) >= len(names):
        raise UserError(f"unknown task {task}: numbers are 0 to {len(names) - 1}")
    return names[int(task)]


def _images_shape(camera: CameraSettings, facts: FamilyFacts) -> tuple[int, ...]:
    _check_choices("camera.names", camera.names, facts.cameras)
    _check_choice("camera.quality", camera.quality, QUALITIES)
    for name in ("height", "width"):
        if getattr(camera, name) < 1:
            raise UserError(f"camera.{name} must be at least 1 pixel, got {getattr(camera, name)}")
    height, width = image_formats.get(camera.format).output_size(camera.height, camera.width)
    return (len(camera.names), height, width, 3)


def _check_choice(setting: str, value: Any, known: Collection[str]) -> None:
    if value not in known:
        raise UserError(f"unknown {setting} {value!r}; {nearest(str(value), known)}")


def _check_choices(setting: str, values: tuple[str, ...], known: Collection[str]) -> None:
    if not values:
        raise UserError(f"{setting} is empty; available: {', '.join(known)}")
    for value in values:
        _check_choice(setting, value, known)
    if len(set(values)) < len(values):
        raise UserError(f"{setting} names the same thing twice: {', '.join(values)}")
