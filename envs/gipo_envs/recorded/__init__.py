"""Recorded observations in place of a simulator, to measure the rest of the system where none is installed.

A recording is a folder that ``python -m gipo_vla.benchmark record`` writes on a machine with the simulator:

    recording.json    tasks, instructions, action size, step limit, frames a second
    images.npy, proprio.npy, state.npy    observations (N, ...), those that were asked for

An episode walks through it from a place that its initial state decides, whatever the actions; every other one
succeeds, half-way. Nothing can be learned here. Shapes, sizes and the flow of data are those of the original.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gipo_envs.episode import EpisodicEnvironment
from gipo_envs.errors import UserError
from gipo_envs.family import Family, WorkerCost
from gipo_envs.protocol import CameraSettings, Environment, EnvironmentSettings, EnvironmentSpec, Observation
from gipo_envs.registry import register
from gipo_envs.settings import OBSERVATIONS, FamilyFacts, build_spec

DESCRIPTION = "recording.json"


def write(folder: Path, spec: EnvironmentSpec, observations: dict[str, NDArray[Any]]) -> None:
    """Write a recording.

    Args:
        spec: of the environment that was recorded.
        observations: arrays (N, ...) by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in observations.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    described = {
        "tasks": spec.tasks,
        "instructions": spec.instructions,
        "action_size": spec.action_size,
        "step_limit": spec.step_limit,
        "frames_per_second": spec.frames_per_second,
    }
    (folder / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n")


def make_spec(settings: EnvironmentSettings) -> EnvironmentSpec:
    """See ``gipo_envs.registry.make_spec``. Cameras are those of the recording, whatever the settings say."""
    described, arrays = _read(settings)
    missing = [name for name in settings.observations if name not in arrays]
    if missing:
        raise UserError(
            f"observations names {missing[0]}, but {settings.assets} holds {', '.join(arrays)} only"
        )
    cameras, height, width = arrays["images"].shape[1:4] if "images" in arrays else (1, 1, 1)
    names = tuple(f"camera{index}" for index in range(cameras))
    facts = FamilyFacts(
        instructions=dict(zip(described["tasks"], described["instructions"])),
        cameras=names,
        state_size=arrays["state"].shape[1] if "state" in arrays else 0,
        proprio_size=arrays["proprio"].shape[1] if "proprio" in arrays else 0,
        action_size=described["action_size"],
        default_step_limit=described["step_limit"],
        frames_per_second=described["frames_per_second"],
    )
    return build_spec(replace(settings, camera=CameraSettings(names, height, width)), facts)


def make(settings: EnvironmentSettings) -> Environment:
    """See ``gipo_envs.registry.make``."""
    return Recorded(settings, make_spec(settings))


def _read(settings: EnvironmentSettings) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The description and, mapped from disk, the arrays of a recording."""
    folder = Path(settings.assets or "")
    if settings.assets is None or not (folder / DESCRIPTION).is_file():
        raise UserError(
            f"assets is {settings.assets}: name a folder that python -m gipo_vla.benchmark record wrote"
        )
    arrays = {
        name: np.load(path, mmap_mode="r", allow_pickle=False)
        for name in OBSERVATIONS
        if (path := folder / f"{name}.npy").is_file()
    }
    return json.loads((folder / DESCRIPTION).read_text()), arrays


class Recorded(EpisodicEnvironment[None]):
    """See the module."""

    def __init__(self, settings: EnvironmentSettings, spec: EnvironmentSpec) -> None:
        super().__init__(settings, spec, sparse=True)
        self._arrays = {name: array for name, array in _read(settings)[1].items() if name in spec.observation}
        self._frames = len(next(iter(self._arrays.values())))
        self._start = 0
        self._success_at: int | None = None

    @property
    def _row(self) -> int:
        return (self._start + self._env_steps) % self._frames

    def _begin(self, initial_state: int, seed: int) -> None:
        draw = np.random.default_rng(np.random.SeedSequence((self._task, initial_state)))
        self._start = int(draw.integers(self._frames))
        self._success_at = self._spec.step_limit // 2 if draw.random() < 0.5 else None

    def _prepare(self, actions: NDArray[np.float32]) -> list[None]:
        return [None] * len(actions)

    def observe(self) -> Observation:
        # Images were recorded with their format applied.
        return {"task": np.asarray(self._task, np.int64)} | self._look()

    def _look(self) -> Observation:
        return {name: np.array(array[self._row]) for name, array in self._arrays.items()}

    def render(self, height: int, width: int) -> NDArray[np.uint8]:
        if "images" not in self._arrays:
            return np.zeros((height, width, 3), np.uint8)
        frame = self._arrays["images"][self._row, 0]
        return np.asarray(Image.fromarray(frame).resize((width, height)))

    def _advance(self, _: None) -> tuple[float, bool]:
        return 0.0, self._env_steps + 1 == self._success_at


# The recording itself is memory that all workers share.
FAMILY = register(
    Family("recorded", make_spec, make, WorkerCost(40_000_000, env_step_seconds=1e-5), needs_opengl=False)
)
