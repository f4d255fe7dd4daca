"""One Meta-World task as a function: (initial-state key, actions) -> states, rewards, successes, to the bit.

metaworld's own environment is not such a function. An episode leaves traces that the next one sees: body
and site positions written into the model, fields that some ``reset_model`` read before they set them, views
into MuJoCo's arrays, and the physics from which the hand is driven back. Here every episode starts from
what the constructor left, so it equals the first episode of a newly constructed metaworld environment that
was given the same task (its ``rand_vec``); the tests compare all 50 tasks.
"""

from __future__ import annotations

import copy
import zlib
from functools import cache
from typing import Any, cast

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from numpy.typing import NDArray

from gipo_envs import rendering
from gipo_envs.metaworld.cameras import Cameras
from gipo_envs.metaworld.stepping import PreparedAction, fast_class


class TaskSimulation:
    """One task of Meta-World. Costs 0.5 MB and 1 ms, the first of its task in a process 25 MB and 0.1 s
    (see ``shared_model``)."""

    def __init__(self, task: str) -> None:
        self.task = task
        environment = fast_class(ALL_V3_ENVIRONMENTS[task])()
        environment.show_goal()
        environment._set_task_called = True
        environment.seeded_rand_vec = True
        self._environment = environment
        self._shared_model = environment.shared_model
        self._model_values = self._shared_model.values()
        self._pristine_attributes = dict(environment.__dict__)
        self._pristine_values = copy.deepcopy(_values(environment.__dict__))
        self._cameras: Cameras | None = None
        self.observation: NDArray[np.float64] = np.zeros(39)
        """(39,) what metaworld's ``reset`` or last ``step`` returned."""

    @property
    def model(self) -> Any:
        """MuJoCo's model, with this simulation's values in it."""
        self._take_model()
        return self._environment.model

    @property
    def data(self) -> Any:
        """MuJoCo's data; after a reset or step its positions are those of the present state."""
        return self._environment.data

    @property
    def rand_vec(self) -> NDArray[np.float64]:
        """Where this episode's objects and goal are, in metaworld's terms."""
        return cast(NDArray[np.float64], self._environment._last_rand_vec.copy())

    def reset(self, initial_state: int) -> None:
        """Begin the episode of an initial-state key.

        The key seeds a generator from which the task's own ``reset_model`` draws its ``rand_vec``, rejecting
        as it does (objects too near their goals). No other random number is drawn in an episode.
        """
        environment = self._environment
        self._restore()
        entropy = (zlib.crc32(self.task.encode()), initial_state)
        environment.np_random = np.random.default_rng(np.random.SeedSequence(entropy))
        # As ``SawyerXYZEnv.reset`` does, which makes each reset twice; only once is not the same: in the
        # first, object positions are read before MuJoCo has seen where the bodies were put.
        environment._freeze_rand_vec = False
        environment.reset_model()
        environment._freeze_rand_vec = True
        mujoco.mj_resetData(environment.model, environment.data)
        observation = environment.reset_model()
        environment._prev_obs = observation[:18].copy()
        observation[18:36] = environment._prev_obs
        self.observation = observation.astype(np.float64)
        self._model_values = self._shared_model.values()

    def prepare(self, actions: NDArray[np.float32]) -> list[PreparedAction]:
        """Actions (K, 4) in the form that ``advance`` takes."""
        return cast(list[PreparedAction], self._environment.prepare(actions))

    def advance(self, action: PreparedAction) -> tuple[float, bool]:
        """One env step; returns (dense reward, momentary success)."""
        environment = self._environment
        self._take_model()
        reward, success = environment.advance(action)
        self.observation = environment._last_stable_obs
        return reward, success

    def picture(self, camera: str, height: int, width: int, quality: rendering.Quality) -> NDArray[np.uint8]:
        """A picture (height, width, 3) of the present state; changes nothing."""
        self._take_model()
        if self._cameras is None:
            self._cameras = Cameras(self.model, self.task)
        return self._cameras.picture(self.data, camera, height, width, quality)

    def close(self) -> None:
        """Release what metaworld holds."""
        self._environment.close()

    def _take_model(self) -> None:
        if self._shared_model.holder is not self._environment:
            self._shared_model.hand_to(self._environment, self._model_values)

    def _restore(self) -> None:
        """Put model, physics and every attribute back to what the constructor left."""
        environment = self._environment
        environment.__dict__.clear()
        environment.__dict__.update(self._pristine_attributes)
        environment.__dict__.update(copy.deepcopy(self._pristine_values))
        self._shared_model.hand_to(environment)
        mujoco.mj_resetData(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)


@cache
def rehearsal(task: str) -> TaskSimulation:
    """The process's simulation of a task in which nobody plays. A reset in it makes the same reset of an
    environment cheap: most of one is the hand's way to where episodes begin, which the process remembers
    (``stepping.FastSawyer``)."""
    return TaskSimulation(task)


def _values(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes that an episode might change in place: arrays of their own, dictionaries and lists."""
    return {
        name: value
        for name, value in attributes.items()
        if (type(value) is np.ndarray and value.base is None) or type(value) in (dict, list)
    }
