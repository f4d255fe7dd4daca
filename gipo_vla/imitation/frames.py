"""A data set's pictures as the policy's environment would show them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gipo_envs import CameraSettings, image_formats


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
