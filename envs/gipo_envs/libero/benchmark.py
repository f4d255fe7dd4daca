"""The yardsticks of the rollout benchmark: LIBERO's own environment, stepped without this project.

*Naive* is what most code does: two cameras of 256 x 256 drawn in every step. *Gated* is the same environment
with the cameras' sensors drawing only in the last step of a chunk, which is all that a policy with open-loop
chunks looks at, and is what the worker pool is to be compared with. Where no images are observed there are no
cameras, and both are LIBERO's own step without rendering.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gipo_envs.libero import assets, catalogue, installation
from gipo_envs.libero.simulation import SETTLE_STEPS, STILL
from gipo_envs.protocol import EnvironmentSettings, EnvironmentSpec

NAIVE_SIDE = 256
"""Pixels; the size of the published data."""


class LiberoLoop:
    """LIBERO's ``ControlEnv`` on the first task, from its first published state.

    Args:
        chunk: draw in every ``chunk``-th step only.
    """

    def __init__(self, settings: EnvironmentSettings, spec: EnvironmentSpec, chunk: int) -> None:
        wrapper = installation.environments()
        installation.use_assets(assets.find(settings.assets))
        task = catalogue.task(settings.family, spec.tasks[0])
        self._chunk = chunk
        self._initial_state = np.array(catalogue.published_states(task)[0])
        self._draws = "images" in settings.observations
        self._environment = wrapper.ControlEnv(
            bddl_file_name=str(task.definition),
            use_camera_obs=self._draws,
            has_offscreen_renderer=self._draws,
            camera_heights=NAIVE_SIDE,
            camera_widths=NAIVE_SIDE,
            hard_reset=False,
        )
        self._gate_open = True
        for name, observable in self._environment.env._observables.items():
            if name.endswith("_image"):
                observable.set_sensor(self._gated(observable._sensor))
        self._steps = 0

    def _gated(self, sensor: Callable[[Any], Any]) -> Callable[[Any], Any]:
        last = sensor({})

        def draw_if_open(cache: Any) -> Any:
            nonlocal last
            if self._gate_open:
                last = sensor(cache)
            return last

        draw_if_open.__modality__ = sensor.__modality__  # type: ignore[attr-defined]
        return draw_if_open

    def reset(self) -> None:
        if self._draws:
            # This process's other renderer may have made its own OpenGL context the current one.
            self._environment.sim._render_context_offscreen.gl_ctx.make_current()
        self._gate_open = False
        self._environment.env.reset()
        self._environment.set_init_state(self._initial_state)
        for _ in range(SETTLE_STEPS):
            self._environment.step(STILL)
        self._steps = 0

    def step(self, action: NDArray[np.float32]) -> None:
        self._steps += 1
        self._gate_open = self._steps % self._chunk == 0
        self._environment.step(action)
