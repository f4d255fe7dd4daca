"""LIBERO behind the environment protocol."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gipo_envs.episode import EpisodicEnvironment
from gipo_envs.libero import simulations
from gipo_envs.libero.catalogue import PUBLISHED_STATES, Task
from gipo_envs.libero.simulation import EpisodeState, TaskSimulation
from gipo_envs.libero.stepping import Floats
from gipo_envs.protocol import EVALUATION_KEYS_START, EnvironmentSettings, EnvironmentSpec, Observation

CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
"""Our name of a camera -> LIBERO's."""

VIDEO_CAMERA = "agentview"


class LiberoEnvironment(EpisodicEnvironment[Floats]):
    """One robot that can be reset to any of its tasks; see ``gipo_envs.protocol.Environment``.

    Cheap to make: what is large belongs to the process (``simulations``). The first ``PUBLISHED_STATES`` keys
    from ``EVALUATION_KEYS_START`` on are the published initial states, whose fixtures are placed by the seed;
    any other key seeds the task's own sampler, which places everything.
    """

    def __init__(
        self, settings: EnvironmentSettings, spec: EnvironmentSpec, tasks: tuple[Task, ...], assets: Path
    ) -> None:
        super().__init__(settings, spec, sparse=True)
        self._tasks = tasks
        self._assets = assets
        self._simulation: TaskSimulation | None = None
        self._episode: EpisodeState | None = None
        self._landmarks: NDArray[np.float32] | None = None

    @property
    def simulation(self) -> TaskSimulation:
        """The simulation of the present task, shared with the other environments of this process."""
        if self._simulation is None:
            raise RuntimeError("no episode was begun: call reset")
        return self._simulation

    @property
    def episode(self) -> EpisodeState:
        """The present episode's part of the simulation."""
        if self._episode is None:
            raise RuntimeError("no episode was begun: call reset")
        return self._episode

    def _begin(self, initial_state: int, seed: int) -> None:
        published = initial_state - EVALUATION_KEYS_START
        self._leave()
        self._simulation = simulations.acquire(self._tasks[self._task], self._assets)
        self._episode = (
            self._simulation.begin_published(published, seed)
            if 0 <= published < PUBLISHED_STATES
            else self._simulation.begin_sampled(initial_state)
        )
        self._arrive()

    def prepare(self, task: int) -> None:
        """Make what an episode of that task will need; a worker calls it in idle moments."""
        simulations.prepare(self._tasks[task], self._assets)

    def _prepare(self, actions: NDArray[np.float32]) -> list[Floats]:
        return list(actions.astype(np.float64))

    def _advance(self, action: Floats) -> tuple[float, bool]:
        success = self.simulation.step(self.episode, action)
        return float(success), success

    def _arrive(self) -> None:
        # Now, while MuJoCo's positions and contacts are this episode's; ``observe`` may come later.
        if "landmarks" in self._spec.observation:
            self._landmarks = self.simulation.landmarks(self.episode)

    def _look(self) -> Observation:
        """As LIBERO's last step would have returned it."""
        proprio = proprioception(self.episode)
        seen: Observation = {"proprio": proprio}
        if "state" in self._spec.observation:
            state = np.zeros(self._spec.observation["state"].shape, np.float32)
            joints = self.simulation.state(self.episode)
            state[: len(proprio)] = proprio
            state[len(proprio) : len(proprio) + len(joints)] = joints
            seen["state"] = state
        if self._landmarks is not None:
            seen["landmarks"] = self._landmarks.copy()
        return seen

    def _frame(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        quality = self._settings.camera.quality
        episode = self.episode
        frame = self.simulation.picture(episode, CAMERAS[camera], height, width, quality, episode.view)
        return frame[::-1]  # LIBERO's observations begin with the bottom row

    def render(self, height: int, width: int) -> NDArray[np.uint8]:
        return self.simulation.picture(self.episode, CAMERAS[VIDEO_CAMERA], height, width, "default")

    def close(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._simulation is not None:
            simulations.release(self._simulation)
        self._simulation = self._episode = None


def proprioception(episode: EpisodeState) -> NDArray[np.float32]:
    """(8,) position of the hand (metres), its orientation as axis times angle (radians), and the fingers'
    joint positions (metres), in the order of the published evaluation."""
    view = episode.view
    return np.concatenate(
        [view.hand_position, axis_angle(view.hand_quaternion), view.gripper], dtype=np.float32
    )


def axis_angle(quaternion: Floats) -> Floats:
    """A quaternion (x, y, z, w) as axis times angle, radians: robosuite's ``quat2axisangle``, to the bit."""
    w = min(max(float(quaternion[3]), -1.0), 1.0)
    sine = math.sqrt(1.0 - w * w)
    if math.isclose(sine, 0.0):
        return np.zeros(3)
    return (quaternion[:3] * 2.0 * math.acos(w)) / sine
