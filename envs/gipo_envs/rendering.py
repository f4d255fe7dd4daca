"""Pictures of MuJoCo models, any number of models and sizes in one process.

One OpenGL context serves the whole process: under OSMesa a second one corrupts the pictures of the first,
which rules out one ``mujoco.Renderer`` an environment. Inside it every (model, quality, size) has a
drawing context of its own (meshes, textures and an off-screen buffer), shared by all environments of that
model, and made when it is first drawn.

On one CPU core a 128 x 128 frame of Meta-World takes 65 ms with MuJoCo's defaults (four samples a pixel,
4096-texel shadow maps for three lights) and 6.6 ms in quality ``fast``. A frame of a video (288 x 384) takes
87 ms, without shadows and reflections (``smooth``) 19 ms, in quality ``fast`` 8 ms.
"""

from __future__ import annotations

import atexit
import os
from functools import cache
from typing import Any, Literal, NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from gipo_envs import gl

Quality = Literal["fast", "smooth", "default"]
"""``fast`` and ``default`` as in ``gipo_envs.protocol.CameraSettings``; ``smooth``, for videos, is ``fast``
with MuJoCo's several samples a pixel."""

_GREATEST_GEOMS = 2000
"""Room for drawn shapes; a Meta-World scene has fewer than 200."""


class _Drawing(NamedTuple):
    """What drawing one model in one quality and size takes."""

    context: Any
    scene: Any
    viewport: Any


class Renderer:
    """Draws MuJoCo models; get the process's one from ``shared``."""

    def __init__(self) -> None:
        self._gl_context = gl.context_class()(64, 64)  # drawing happens in off-screen buffers of any size
        self._drawings: dict[tuple[str, Quality, int, int], _Drawing] = {}

    def render(
        self,
        model: Any,
        data: Any,
        model_name: str,
        camera: Any,
        height: int,
        width: int,
        quality: Quality,
        hidden_groups: tuple[int, ...] = (),
    ) -> NDArray[np.uint8]:
        """A picture (height, width, 3) of ``data``, top row first.

        Args:
            model: MuJoCo model.
            data: MuJoCo data whose positions are up to date (``mj_forward``).
            model_name: equal for models with the same meshes and textures; they share what is drawn with.
            camera: an ``MjvCamera``.
            height: pixels.
            width: pixels.
            quality: see ``Quality``.
            hidden_groups: groups of geoms that are not drawn, besides those that MuJoCo hides.
        """
        self._gl_context.make_current()
        key = (model_name, quality, height, width)
        if key not in self._drawings:
            self._drawings[key] = _make_drawing(model, quality, height, width)
        drawing = self._drawings[key]
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, drawing.context)
        everything = int(mujoco.mjtCatBit.mjCAT_ALL)
        option = mujoco.MjvOption()
        for group in hidden_groups:
            option.geomgroup[group] = 0
        mujoco.mjv_updateScene(model, data, option, None, camera, everything, drawing.scene)
        mujoco.mjr_render(drawing.viewport, drawing.scene, drawing.context)
        picture = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, drawing.viewport, drawing.context)
        return np.ascontiguousarray(picture[::-1])  # OpenGL's first row is the bottom one

    def forget(self, model_name: str) -> None:
        """Free what drawing this model took; it may be drawn again."""
        self._gl_context.make_current()
        for key in [key for key in self._drawings if key[0] == model_name]:
            self._drawings.pop(key).context.free()

    def close(self) -> None:
        """Free all OpenGL resources, drawings before the context that they live in; not to be used again."""
        self._gl_context.make_current()
        for drawing in self._drawings.values():
            drawing.context.free()
        self._drawings.clear()
        # Deleted, not only freed: MuJoCo's contexts free themselves once more when the interpreter, and
        # the modules that they need for it, are gone.
        del self._gl_context


def fixed_camera(model: Any, name: str) -> Any:
    """An ``MjvCamera`` that looks from where the model's camera of that name is."""
    camera = mujoco.MjvCamera()
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera(name).id
    return camera


def shared() -> Renderer:
    """This process's renderer."""
    return _of_process(os.getpid())


@cache
def _of_process(_: int) -> Renderer:
    # By process id: a context that was inherited through fork does not work.
    renderer = Renderer()
    atexit.register(renderer.close)
    return renderer


def _make_drawing(model: Any, quality: Quality, height: int, width: int) -> _Drawing:
    """A drawing context with an off-screen buffer of exactly that size."""
    # MuJoCo reads size and quality from the model when the context is made; they are set for that moment.
    buffer, detail = model.vis.global_, model.vis.quality
    before = buffer.offheight, buffer.offwidth, detail.offsamples, detail.shadowsize
    buffer.offheight, buffer.offwidth = height, width
    if quality != "default":
        detail.shadowsize = 0
    if quality == "fast":
        detail.offsamples = 0
    try:
        context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
    finally:
        buffer.offheight, buffer.offwidth, detail.offsamples, detail.shadowsize = before
    scene = mujoco.MjvScene(model, _GREATEST_GEOMS)
    if quality != "default":
        scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
    return _Drawing(context, scene, mujoco.MjrRect(0, 0, width, height))
