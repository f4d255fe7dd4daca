"""Where Meta-World is looked at from."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from gipo_envs import rendering

VIDEO_CAMERA = "overview"

_UPSIDE_DOWN = frozenset({"corner", "corner2", "corner3", "corner4"})
"""metaworld's models define these with "up" pointing down; their pictures are turned by 180 degrees (not
flipped, which would swap left and right)."""


class Cameras:
    """Pictures of one simulation, taken without touching it.

    MuJoCo's data is copied for each picture. Bringing the positions of the live data up to date would
    change its solver's warm start, and so the bits of the next step.
    """

    def __init__(self, model: Any, model_name: str) -> None:
        self._model = model
        self._model_name = model_name
        self._scratch = mujoco.MjData(model)
        self._state_kind = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        self._state = np.empty(mujoco.mj_stateSize(model, self._state_kind))

    def picture(
        self, data: Any, name: str, height: int, width: int, quality: rendering.Quality
    ) -> NDArray[np.uint8]:
        """A picture (height, width, 3) of ``data`` from the camera of that name, the right way up."""
        mujoco.mj_getState(self._model, data, self._state, self._state_kind)
        mujoco.mj_setState(self._model, self._scratch, self._state, self._state_kind)
        mujoco.mj_forward(self._model, self._scratch)
        camera = _overview() if name == "overview" else rendering.fixed_camera(self._model, name)
        frame = rendering.shared().render(
            self._model, self._scratch, self._model_name, camera, height, width, quality
        )
        return np.ascontiguousarray(frame[::-1, ::-1]) if name in _UPSIDE_DOWN else frame


def _overview() -> Any:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.azimuth, camera.elevation, camera.distance = 135.0, -35.0, 1.2
    camera.lookat[:] = (0.0, 0.72, 0.12)  # the middle of the table, a hand's breadth above it
    return camera
