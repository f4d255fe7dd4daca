"""A simulator of one's own: a small MuJoCo task, from its XML to a trained policy.

A puck slides on a table, pushed by two motors; it has to get to a target and stay there, against its own
inertia. The policy sees the state. A family of environments is three things: facts that hold for all of its
tasks, a function that makes one environment, and what a worker process costs.

    python -m gipo_vla.train plugins=[examples.own_simulator] experiment=puck
    python -m gipo_vla.train plugins=[examples.own_simulator] experiment=puck env.task=near iterations=5
    python -m gipo_vla.evaluate plugins=[examples.own_simulator] checkpoint=RUN_DIR
    python -m gipo_vla.sweep plugins=[examples.own_simulator] experiment=puck env.reward=dense,sparse

The first command takes about half a minute and ends with nearly every episode solved. Add
``eval.video=true`` for a video where MuJoCo can draw (``python -m gipo_vla.doctor`` says whether it can).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import gipo_envs
from gipo_envs import Environment, EnvironmentSettings, EnvironmentSpec, Family, Observation, WorkerCost
from gipo_envs.episode import EpisodicEnvironment
from gipo_envs.settings import FamilyFacts, build_spec
from gipo_vla.settings.composition import preset

XML = """
<mujoco model="puck">
  <option timestep="0.01" integrator="implicitfast"/>
  <worldbody>
    <light pos="0 0 2"/>
    <camera name="top" pos="0 0 0.9"/>
    <geom type="plane" size="0.35 0.35 0.1" rgba="0.9 0.9 0.88 1"/>
    <body name="puck" pos="0 0 0.02">
      <joint name="x" type="slide" axis="1 0 0" damping="1" range="-0.3 0.3" limited="true"/>
      <joint name="y" type="slide" axis="0 1 0" damping="1" range="-0.3 0.3" limited="true"/>
      <geom type="cylinder" size="0.03 0.015" mass="0.1" rgba="0.2 0.4 0.8 1"/>
    </body>
    <body name="target" mocap="true"><geom type="sphere" size="0.04" rgba="0.2 0.7 0.3 0.5" contype="0"
                                           conaffinity="0"/></body>
  </worldbody>
  <actuator>
    <motor joint="x" ctrlrange="-1 1"/>
    <motor joint="y" ctrlrange="-1 1"/>
  </actuator>
</mujoco>
"""
SUBSTEPS = 5
"""Physics steps of an env step: 20 env steps a second."""
TABLE = 0.3
"""Metres from the middle of the table to its edge."""
TARGET_RADIUS = 0.04
"""Metres. The task is solved while the puck is nearer to the target than this."""

FACTS = FamilyFacts(
    instructions={
        "reach": "move the puck to the target",
        "near": "move the puck to the target nearby",
    },
    cameras=("top",),
    state_size=8,
    proprio_size=4,
    action_size=2,
    default_step_limit=40,
    # An episode's rewards add up to about 30: 1 for each env step at the target, and the progress to it.
    dense_reward_scale=0.1,
    frames_per_second=20.0,
)


def make_spec(settings: EnvironmentSettings) -> EnvironmentSpec:
    """Checks the settings and describes the environment; called before any worker is started."""
    return build_spec(settings, FACTS)


def make(settings: EnvironmentSettings) -> Environment:
    """An environment, in a worker process."""
    return Puck(settings, make_spec(settings))


class Puck(EpisodicEnvironment[Any]):
    """See the module. What stands here is the simulation; chunks, held actions, step limits, sparse rewards
    and ends of episodes are ``EpisodicEnvironment``'s."""

    def __init__(self, settings: EnvironmentSettings, spec: EnvironmentSpec) -> None:
        super().__init__(settings, spec, sparse=settings.reward == "sparse")
        import mujoco  # here, so that the trainer's main process needs no simulator

        self.mujoco = mujoco
        self.model = mujoco.MjModel.from_xml_string(XML)
        self.data = mujoco.MjData(self.model)

    def _begin(self, initial_state: int, seed: int) -> None:
        """The key alone says where an episode starts; the seed is for other noise, of which there is none."""
        draw = np.random.default_rng(np.random.SeedSequence((self._task, initial_state))).uniform
        self.mujoco.mj_resetData(self.model, self.data)
        near = self._spec.tasks[self._task] == "near"
        while True:
            self.data.qpos[:] = draw(-TABLE, TABLE, 2)
            self.data.mocap_pos[0, :2] = draw(-TABLE, TABLE, 2)
            if 2 * TARGET_RADIUS < self._distance() < (0.2 if near else np.inf):
                break
        self.mujoco.mj_forward(self.model, self.data)

    def _advance(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        """One env step: dense reward (progress in units of 5 cm, and 1 at the target) and success."""
        before = self._distance()
        self.data.ctrl[:] = action
        self.mujoco.mj_step(self.model, self.data, SUBSTEPS)
        after = self._distance()
        return (before - after) / 0.05 + float(after < TARGET_RADIUS), after < TARGET_RADIUS

    def _to_target(self) -> NDArray[np.float64]:
        """(2,), metres."""
        vector: NDArray[np.float64] = self.data.mocap_pos[0, :2] - self.data.qpos
        return vector

    def _distance(self) -> float:
        return float(np.sqrt((self._to_target() ** 2).sum()))

    def _look(self) -> Observation:
        data, target = self.data, self.data.mocap_pos[0, :2]
        return {
            "state": np.concatenate([data.qpos, data.qvel, target, self._to_target()]).astype(np.float32),
            "proprio": np.concatenate([data.qpos, data.qvel]).astype(np.float32),
        }

    def render(self, height: int, width: int) -> NDArray[np.uint8]:
        """A picture for videos, and for policies that look."""
        from gipo_envs import rendering

        camera = rendering.fixed_camera(self.model, "top")
        return rendering.shared().render(
            self.model, self.data, "puck", camera, height, width, self._settings.camera.quality
        )


gipo_envs.register(
    # Megabytes of a worker and seconds of an env step, as measured (python -m gipo_vla.benchmark rollout).
    Family("puck", make_spec, make, WorkerCost(libraries=45_000_000, env_step_seconds=5e-5))
)
preset(
    "experiment",
    "puck",
    {
        "defaults": ["/experiment/point_reach"],
        "experiment": "puck",
        "env": {"family": "puck", "task": "reach", "camera": {"names": ["top"]}},
        "iterations": 30,
    },
)
