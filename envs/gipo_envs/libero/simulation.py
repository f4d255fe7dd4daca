"""One LIBERO task as a function: (initial state, seed, actions) -> states, pictures, successes, to the bit.

A compiled task is some 100 MB, most of it meshes, and takes 1 to 2 seconds to make; what changes in an
episode is a few kilobytes. So there is one ``TaskSimulation`` of a task in a process, and the episodes of
all environments take turns on it (``simulations`` keeps them). Whose turn ends is put away as an
``EpisodeState``: what MuJoCo calls the integration state, the three fields of the model that LIBERO writes,
the controller and the gripper. A step begins with a full forward computation, so nothing else is needed.

Every episode starts from the model as it was compiled and from a random generator seeded for it: robosuite
samples from numpy's global one, which is put back afterwards.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from gipo_envs import rendering
from gipo_envs.errors import UserError
from gipo_envs.libero import grips, installation, landmarks
from gipo_envs.libero.catalogue import Task, published_states
from gipo_envs.libero.installation import MODEL_FIELDS, model_values
from gipo_envs.libero.stepping import Floats, Stepper, View

SETTLE_STEPS = 10
"""Env steps without motion before the first observation: objects are released a little above where they
will lie (OpenVLA-OFT, ``num_steps_wait``)."""

STILL = np.array([0, 0, 0, 0, 0, 0, -1], np.float64)
"""The action of these steps: no motion, gripper open."""

SAMPLING_ATTEMPTS = 50
"""Draws of an initial state; the task's sampler may place an object where it falls or where the goal is."""

PLACEMENT_ATTEMPTS = 10
"""Resets, each with 5000 tries an object; LIBERO's own wrapper would go on for ever."""

SETTLED_SPEED = 0.1
"""Metres (radians) a second; after the settle steps of a sampled state no object moves faster. Objects that
were placed into each other, or fall, do (1 to 5 m/s)."""

_PHYSICS_STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)
_COLLISION_GROUP = 0
"""Geoms of this group are for contacts only; robosuite hides them from cameras."""


@dataclass
class EpisodeState:
    """An episode of one environment: what of it is not in the simulation while others have their turn."""

    view: View
    physics: Floats
    model: tuple[NDArray[Any], ...]
    controller: Any
    gripper: Floats


class TaskSimulation:
    """A task, compiled; get it from ``simulations``."""

    def __init__(self, task: Task, assets: Path) -> None:
        self.task = task
        self._name = f"{task.suite} {task.name}"
        self._holder: EpisodeState | None = None
        self.users = 0
        """Environments whose present episode is of this task."""
        with _global_generator(0):
            try:
                self._robosuite = installation.make_simulator(task.definition, assets)
            except (FileNotFoundError, ValueError) as error:
                raise UserError(
                    f"{self._name} cannot be made from the assets in {assets}: {error}"
                ) from error
            self._reset()
        self._stepper = Stepper(self._robosuite)
        self._grips = grips.of_goal(self._robosuite)
        robot = self._robosuite.robots[0]
        own = [*robot._ref_joint_vel_indexes, *robot._ref_gripper_joint_vel_indexes]
        self._object_velocities = np.setdiff1d(np.arange(self.model.nv), own)
        self._drawing_name = f"{assets}/{task.suite}/{task.name}"
        self._is_drawn = False

    @property
    def model(self) -> Any:
        """MuJoCo's model, with the values of whose turn it is."""
        return self._robosuite.sim.model._model

    @property
    def data(self) -> Any:
        """MuJoCo's data of whose turn it is."""
        return self._robosuite.sim.data._data

    # ------------------------------------------------------------------------------------------- episodes

    def begin_published(self, number: int, seed: int) -> EpisodeState:
        """An episode from one of the 50 published initial states, after the settle steps.

        ``seed`` places the fixtures, which are not in the states, as ``env.seed(seed)`` before
        ``env.reset()`` does in the published evaluation.
        """
        with _global_generator(seed % 2**32):
            self._reset()
        return self._begin_from(published_states(self.task)[number])

    def begin_sampled(self, key: int) -> EpisodeState:
        """An episode from the task's own sampler, after the settle steps: at rest, and not yet solved.

        Raises:
            RuntimeError: none of ``SAMPLING_ATTEMPTS`` draws was.
        """
        for attempt in range(SAMPLING_ATTEMPTS):
            entropy = (zlib.crc32(self.task.name.encode()), key, attempt)
            with _global_generator(np.random.SeedSequence(entropy).generate_state(4)):
                self._reset()
            episode = self._begin_from(self._robosuite.sim.get_state().flatten())
            if not self.is_solved() and self._is_at_rest():
                return episode
        raise RuntimeError(f"{self._name}: no initial state in {SAMPLING_ATTEMPTS} draws for key {key}")

    def step(self, episode: EpisodeState, action: Floats) -> bool:
        """One env step; returns the momentary success. ``episode.view`` is what a camera sees of it."""
        self._give_turn(episode)
        episode.view = self._stepper.step(action)
        success = self.is_solved()
        self._robosuite._post_process()
        return success

    def state(self, episode: EpisodeState) -> Floats:
        """Positions and velocities of all joints, as in the published initial states but for the time."""
        self._give_turn(episode)
        return np.concatenate([self.data.qpos, self.data.qvel])

    def landmarks(self, episode: EpisodeState) -> NDArray[np.float32]:
        """See ``gipo_envs.libero.landmarks``; to be asked right after ``begin_...`` or ``step``."""
        assert self._holder is episode, "positions are computed in a step: another episode has had one since"
        return landmarks.read(self._robosuite, episode.view, self.task.suite, self._grips)

    def _begin_from(self, state: Floats) -> EpisodeState:
        """What LIBERO's ``set_init_state`` does, then the settle steps."""
        simulator = self._robosuite
        simulator.sim.set_state_from_flattened(np.array(state))
        simulator.sim.forward()
        self.is_solved()  # notes which flames burn
        simulator._post_process()
        self._stepper.adopt_controller()
        episode = EpisodeState(
            view=self._stepper.view(self.data.qpos.copy()),
            physics=np.empty(mujoco.mj_stateSize(self.model, _PHYSICS_STATE)),
            model=(),
            controller=simulator.robots[0].controller,
            gripper=simulator.robots[0].gripper.current_action,
        )
        self._holder = episode
        for _ in range(SETTLE_STEPS):
            self.step(episode, STILL)
        return episode

    def _reset(self) -> None:
        """robosuite's soft reset, made to forget what came before it."""
        self._put_away()
        for field, value in zip(MODEL_FIELDS, self._robosuite.compiled_values):
            getattr(self.model, field)[:] = value
        gripper = self._robosuite.robots[0].gripper
        gripper.current_action = np.zeros_like(gripper.current_action)
        for _ in range(PLACEMENT_ATTEMPTS):
            try:
                self._robosuite.reset()
                return
            except installation.environments().RandomizationError:
                continue
        raise RuntimeError(f"{self._name}: no room for an object in {PLACEMENT_ATTEMPTS} attempts")

    def is_solved(self) -> bool:
        """Whether the goal is met; to be asked right after ``begin_...`` or ``step`` of whose turn it is."""
        return bool(self._robosuite._check_success())

    def _is_at_rest(self) -> bool:
        return bool(np.abs(self.data.qvel[self._object_velocities]).max() < SETTLED_SPEED)

    # ---------------------------------------------------------------------------------------------- turns

    def _give_turn(self, episode: EpisodeState) -> None:
        if self._holder is episode:
            return
        self._put_away()
        mujoco.mj_setState(self.model, self.data, episode.physics, _PHYSICS_STATE)
        for field, value in zip(MODEL_FIELDS, episode.model):
            getattr(self.model, field)[:] = value
        robot = self._robosuite.robots[0]
        robot.controller, robot.gripper.current_action = episode.controller, episode.gripper
        self._holder = episode

    def _put_away(self) -> None:
        if (episode := self._holder) is not None:
            mujoco.mj_getState(self.model, self.data, episode.physics, _PHYSICS_STATE)
            episode.model = model_values(self.model)
            episode.gripper = self._robosuite.robots[0].gripper.current_action
        self._holder = None

    # ------------------------------------------------------------------------------------------- pictures

    def picture(
        self,
        episode: EpisodeState,
        camera: str,
        height: int,
        width: int,
        quality: rendering.Quality,
        view: View | None = None,
    ) -> NDArray[np.uint8]:
        """A picture (height, width, 3) of the present state, or of ``view``, the right way up; leaves no
        trace that a step would see."""
        self._give_turn(episode)
        model, data = self.model, self.data
        self._is_drawn = True
        kept = data.qpos.copy(), model.site_rgba.copy()
        if view is not None:
            data.qpos[:], model.site_rgba[:] = view.positions, view.site_colours
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)  # lights and cameras may follow centres of mass
        mujoco.mj_camlight(model, data)
        view = rendering.fixed_camera(model, camera)
        frame = rendering.shared().render(
            model, data, self._drawing_name, view, height, width, quality, hidden_groups=(_COLLISION_GROUP,)
        )
        data.qpos[:], model.site_rgba[:] = kept
        return frame

    def close(self) -> None:
        """Free model, data and what drawing took."""
        if self._is_drawn:
            rendering.shared().forget(self._drawing_name)
        self._holder = None
        self._robosuite.close()


@contextmanager
def _global_generator(seed: int | NDArray[Any]) -> Iterator[None]:
    """numpy's global random generator, seeded for the moment."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
