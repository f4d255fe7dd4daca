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
from pathlib import Path
from typing import Any

import numpy as np

from gipo_envs import EnvironmentSettings, EnvironmentSpec
from gipo_envs.errors import UserError
from gipo_vla.imitation.demonstrations import observation_names
from gipo_vla.imitation.episode import Episode
from gipo_vla.imitation.frames import as_observed, moving
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
    h5py = _import_h5py()
    files = [_file_of(Path(settings.path), task) for task in spec.tasks]
    for task, path in enumerate(files):
        try:
            with h5py.File(path, "r") as file:
                for name in _demonstrations(file)[: settings.count]:
                    yield _episode(file["data"][name], task, settings, env, spec)
        except (OSError, KeyError) as error:
            raise UserError(f"{path} is no demonstration file of LIBERO's: {error}") from error


def _import_h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            "demonstrations=libero_hdf5 needs h5py: pip install h5py, or ./scripts/setup.sh demonstrations"
        ) from error
    return h5py


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


def _episode(
    data: Any, task: int, settings: LiberoHdf5Settings, env: EnvironmentSettings, spec: EnvironmentSpec
) -> Episode:
    actions = np.asarray(data["actions"], np.float32).clip(-1.0, 1.0)
    kept = moving(actions) if settings.drop_no_ops else np.arange(len(actions))
    observations: dict[str, Any] = {}
    for name in observation_names(spec):
        if name == "images":
            views = [
                as_observed(
                    np.asarray(data["obs"][_camera(camera)])[kept], env.camera, settings.rotate_images
                )
                for camera in env.camera.names
            ]
            observations[name] = np.stack(views, axis=1)
        elif name == "proprio":
            parts = [np.asarray(data["obs"][key])[kept] for key in ("ee_states", "gripper_states")]
            observations[name] = np.concatenate(parts, axis=1, dtype=np.float32)
        else:
            raise UserError(f"demonstrations=libero_hdf5 has no {name}: take it out of env.observations")
    return Episode(task, -1, actions[kept], np.arange(len(kept), dtype=np.int64), observations)


def _camera(name: str) -> str:
    if name not in CAMERAS:
        raise UserError(
            f"env.camera.names has {name}, LIBERO's demonstrations have {', '.join(CAMERAS)}: choose of these"
        )
    return CAMERAS[name]
