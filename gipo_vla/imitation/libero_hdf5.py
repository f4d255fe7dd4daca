"""LIBERO's published demonstrations: one HDF5 file a task.

    <task>_demo.hdf5
      data/demo_0/actions                    (T, 7) in [-1, 1], gripper -1 open and +1 closed
      data/demo_0/obs/agentview_rgb          (T, 128, 128, 3) as rendered (upside down)
      data/demo_0/obs/eye_in_hand_rgb        likewise
      data/demo_0/obs/ee_states              (T, 6) hand position, orientation as axis times angle
      data/demo_0/obs/gripper_states         (T, 2)
      data/demo_1/...

Source: Liu et al. 2023, "LIBERO", and its ``scripts/create_dataset.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gipo_envs import EnvironmentSettings, EnvironmentSpec
from gipo_envs.errors import UserError
from gipo_vla.imitation.data_sets import check_observations, converted, library
from gipo_vla.imitation.demonstrations import Episode
from gipo_vla.imitation.settings import LiberoHdf5Settings

CAMERAS = {"agentview": "agentview_rgb", "wrist": "eye_in_hand_rgb"}
"""Camera of ``env.camera.names`` -> name in the file."""


def episodes(
    settings: LiberoHdf5Settings, env: EnvironmentSettings, spec: EnvironmentSpec
) -> Iterator[Episode]:
    """The demonstrations of the environment's tasks, task by task, in the order of their numbers.

    Raises:
        UserError: h5py or a task's file is missing, or a file does not hold what the policy observes.
    """
    h5py = library("h5py", settings.name)
    files = [_file_of(Path(settings.path), task) for task in spec.tasks]
    check_observations(spec, settings.name, ("images", "proprio"))
    cameras = [_camera(name) for name in env.camera.names] if "images" in spec.observation else []
    proprio = ("ee_states", "gripper_states") if "proprio" in spec.observation else ()
    for task, path in enumerate(files):
        try:
            with h5py.File(path, "r") as file:
                for name in _demonstrations(file)[: settings.count]:
                    data = file["data"][name]
                    states = [np.asarray(data["obs"][key]) for key in proprio]
                    frames = [partial(_pictures, data["obs"][camera]) for camera in cameras]
                    joined = np.concatenate(states, axis=1, dtype=np.float32) if states else ()
                    yield converted(task, data["actions"], joined, frames, settings, env, spec)
        except (OSError, KeyError) as error:
            raise UserError(f"{path} is no demonstration file of LIBERO's: {error}") from error


def _file_of(folder: Path, task: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"demonstrations.path={folder} is no folder: name the one with LIBERO's *_demo.hdf5")
    found = sorted(folder.rglob(f"{task}_demo.hdf5"))
    if not found:
        raise UserError(
            f"demonstrations.path={folder} has no {task}_demo.hdf5: download LIBERO's data set of this suite "
            "there, or choose fewer tasks with env.task"
        )
    return found[0]


def _demonstrations(file: Any) -> list[str]:
    """Names within a file, by number."""
    names = [name for name in file["data"] if re.fullmatch(r"demo_\d+", name)]
    return sorted(names, key=lambda name: int(name.removeprefix("demo_")))


def _pictures(recorded: Any, kept: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.asarray(recorded)[kept]


def _camera(name: str) -> str:
    if name not in CAMERAS:
        raise UserError(
            f"env.camera.names has {name}, LIBERO's demonstrations have {', '.join(CAMERAS)}: choose of these"
        )
    return CAMERAS[name]
