"""What readers of published data sets share: an episode as the policy's environment would have shown it.

Shape suffixes: T steps of the recorded episode, A action size, P proprioception, N steps kept.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from gipo_envs import CameraSettings, EnvironmentSettings, EnvironmentSpec, image_formats
from gipo_envs.errors import UserError
from gipo_vla.imitation.demonstrations import Episode, observation_names
from gipo_vla.imitation.settings import LeRobotSettings, LiberoHdf5Settings

Frames = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
"""Pictures (N, h, w, 3) of one camera at some steps (N,) of an episode."""


def library(name: str, source: str) -> Any:
    """An optional library that reads a source's files.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UserError(
            f"demonstrations={source} needs {package}: pip install {package}, or ./scripts/setup.sh "
            "demonstrations"
        ) from error


def check_observations(spec: EnvironmentSpec, source: str, given: Sequence[str]) -> None:
    """Refuse an environment that observes what a source does not give."""
    for name in observation_names(spec):
        if name not in given:
            raise UserError(f"demonstrations={source} gives no {name}: take it out of env.observations")


def converted(
    task: int,
    actions: ArrayLike,
    proprio: ArrayLike,
    cameras: Sequence[Frames],
    settings: LiberoHdf5Settings | LeRobotSettings,
    env: EnvironmentSettings,
    spec: EnvironmentSpec,
) -> Episode:
    """An episode of a data set, from its actions (T, A), proprioception (T, P) and cameras."""
    executed = np.asarray(actions, np.float32).clip(-1.0, 1.0)
    kept = moving(executed) if settings.drop_no_ops else np.arange(len(executed))
    observations: dict[str, Any] = {}
    if "images" in spec.observation:
        views = [as_observed(frames(kept), env.camera, settings.rotate_images) for frames in cameras]
        observations["images"] = np.stack(views, axis=1)
    if "proprio" in spec.observation:
        observations["proprio"] = np.asarray(proprio, np.float32)[kept]
    return Episode(task, -1, executed[kept], np.arange(len(kept), dtype=np.int64), observations)


def as_observed(frames: NDArray[np.uint8], camera: CameraSettings, rotate: bool) -> NDArray[np.uint8]:
    """Frames (N, h, w, 3) of one camera through the environment's own path: resized to what it renders, then
    in its image format.

    Args:
        rotate: turn them by 180 degrees first, to how the simulator renders them.
    """
    image_format = image_formats.get(camera.format)
    if rotate:
        frames = frames[:, ::-1, ::-1]
    return np.stack([image_format.apply(_resized(frame, camera)) for frame in frames])


def _resized(frame: NDArray[np.uint8], camera: CameraSettings) -> NDArray[np.uint8]:
    if frame.shape[:2] == (camera.height, camera.width):
        return np.ascontiguousarray(frame)
    picture = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(picture.resize((camera.width, camera.height), Image.Resampling.LANCZOS))


def moving(actions: NDArray[np.float32], threshold: float = 1e-4) -> NDArray[np.int64]:
    """Rows of actions (T, A) that do something: the arm moves, or the gripper (the last dimension) is told
    something new.

    Source: ``is_noop`` of OpenVLA's ``regenerate_libero_dataset.py``, by which the data of the published
    checkpoints was filtered (there while simulating anew, here on the recorded steps).
    """
    kept: list[int] = []
    for row, action in enumerate(actions):
        still = float(np.linalg.norm(action[:-1])) < threshold
        same_gripper = not kept or action[-1] == actions[kept[-1], -1]
        if not (still and same_gripper):
            kept.append(row)
    return np.array(kept, np.int64)
