"""A simulator of one's own: a small MuJoCo task, from its XML to a trained policy.

An arm with two joints, driven by motors, moves its fingertip to a target and keeps it there. The state is
all that the policy sees. A family of environments is three things: facts that hold for all of its tasks, a
function that makes one environment, and what a worker process costs.

    python -m gipo_vla.train plugins=[examples.own_simulator] experiment=two_joint_arm
    python -m gipo_vla.train plugins=[examples.own_simulator] experiment=two_joint_arm env.task=near iterations=5
    python -m gipo_vla.evaluate plugins=[examples.own_simulator] checkpoint=RUN_DIR
    python -m gipo_vla.sweep plugins=[examples.own_simulator] experiment=two_joint_arm env.reward=dense,sparse

The first command takes about a minute and ends above 80 % success. Add ``eval.video=true`` for a video where
MuJoCo can draw (``python -m gipo_vla.doctor`` says whether it can).
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
<mujoco model="two_joint_arm">
  <compiler angle="radian"/>
  <option timestep="0.01" gravity="0 0 0" integrator="implicitfast"/>
  <visual><global offwidth="640" offheight="480"/></visual>
  <default>
    <joint type="hinge" axis="0 0 1" damping="1" armature="0.05"/>
    <geom type="capsule" size="0.02" rgba="0.2 0.4 0.8 1" contype="0" conaffinity="0"/>
    <motor ctrlrange="-1 1" gear="4"/>
  </default>
  <worldbody>
    <light pos="0 0 2"/>
    <camera name="top" pos="0 0 1" xyaxes="1 0 0 0 1 0"/>
    <geom type="plane" size="0.5 0.5 0.1" pos="0 0 -0.03" rgba="0.9 0.9 0.88 1"/>
    <body>
      <joint name="shoulder"/>
      <geom fromto="0 0 0 0.2 0 0"/>
      <body pos="0.2 0 0">
        <joint name="elbow" range="-2.6 2.6" limited="true"/>
        <geom fromto="0 0 0 0.2 0 0"/>
        <site name="fingertip" pos="0.2 0 0" size="0.02"/>
      </body>
    </body>
    <body name="target" mocap="true"><geom type="sphere" size="0.03" rgba="0.2 0.7 0.3 0.6"/></body>
  </worldbody>
  <actuator><motor joint="shoulder"/><motor joint="elbow"/></actuator>
</mujoco>
"""
SUBSTEPS = 5
"""Physics steps of an env step: 20 env steps a second."""
ARM_LENGTH = 0.4
"""Metres."""
TARGET_RADIUS = 0.05
"""Metres. The task is solved while the fingertip is nearer than this."""

FACTS = FamilyFacts(
    instructions={
        "reach": "move the fingertip to the target",
        "near": "move the fingertip to the target nearby",
    },
    task_groups={},
    cameras=("top",),
    state_size=10,
    proprio_size=4,
    action_size=2,
    default_step_limit=40,
    greatest_step_limit=None,
    # An episode's rewards add up to about 30: 1 for each env step at the target, and the progress to it.
    dense_reward_scale=0.1,
    sparse_reward_scale=1.0,
    frames_per_second=20.0,
)


def make_spec(settings: EnvironmentSettings) -> EnvironmentSpec:
    """Checks the settings and describes the environment; called before any worker is started."""
    return build_spec(settings, FACTS)


def make(settings: EnvironmentSettings) -> Environment:
    """An environment, in a worker process."""
    return TwoJointArm(settings, make_spec(settings))


class TwoJointArm(EpisodicEnvironment[Any]):
    """See the module. What stands here is the simulation; chunks, held actions, step limits, sparse rewards
    and ends of episodes are ``EpisodicEnvironment``'s."""

    def __init__(self, settings: EnvironmentSettings, spec: EnvironmentSpec) -> None:
        super().__init__(settings, spec, sparse=settings.reward == "sparse")
        import mujoco  # here, so that the trainer's main process needs no simulator

        self.mujoco = mujoco
        self.model = mujoco.MjModel.from_xml_string(XML)
        self.data = mujoco.MjData(self.model)

    def _begin(self, initial_state: int, seed: int) -> None:
        """The initial state is drawn from its key alone; the seed changes nothing, there is no other noise."""
        draw = np.random.default_rng(np.random.SeedSequence((self._task, initial_state))).uniform
        self.mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = draw(-np.pi, np.pi), draw(-2.0, 2.0)
        near = self._spec.tasks[self._task] == "near"
        while True:
            angle, radius = draw(-np.pi, np.pi), draw(0.15, 0.95) * ARM_LENGTH
            self.data.mocap_pos[0] = radius * np.cos(angle), radius * np.sin(angle), 0.0
            self.mujoco.mj_forward(self.model, self.data)
            if 2 * TARGET_RADIUS < self._distance() < (0.2 if near else np.inf):
                return

    def _advance(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        """One env step: dense reward (progress in units of 5 cm, and 1 at the target) and success."""
        before = self._distance()
        self.data.ctrl[:] = action
        self.mujoco.mj_step(self.model, self.data, SUBSTEPS)
        self.mujoco.mj_forward(self.model, self.data)  # what is observed belongs to this very state
        after = self._distance()
        return (before - after) / 0.05 + float(after < TARGET_RADIUS), after < TARGET_RADIUS

    def _to_target(self) -> NDArray[np.float64]:
        vector: NDArray[np.float64] = self.data.mocap_pos[0] - self.data.site("fingertip").xpos
        return vector

    def _distance(self) -> float:
        return float(np.sqrt((self._to_target() ** 2).sum()))

    def _look(self) -> Observation:
        angles, speeds = self.data.qpos, self.data.qvel
        everything = {
            "state": [np.cos(angles), np.sin(angles), 0.1 * speeds, self.data.mocap_pos[0, :2] / ARM_LENGTH,
                      self._to_target()[:2] / ARM_LENGTH],
            "proprio": [angles, speeds],
        }  # fmt: skip
        return {
            name: np.concatenate(parts).astype(np.float32)
            for name, parts in everything.items()
            if name in self._spec.observation
        }

    def render(self, height: int, width: int) -> NDArray[np.uint8]:
        """A picture for videos, and for policies that look."""
        from gipo_envs import rendering

        camera = self.mujoco.MjvCamera()
        camera.type, camera.fixedcamid = self.mujoco.mjtCamera.mjCAMERA_FIXED, self.model.camera("top").id
        return rendering.shared().render(
            self.model, self.data, "two_joint_arm", camera, height, width, self._settings.camera.quality
        )


gipo_envs.register(
    # Megabytes of a worker and seconds of an env step, as measured (python -m gipo_vla.benchmark rollout).
    Family("two_joint_arm", make_spec, make, WorkerCost(libraries=45_000_000, env_step_seconds=5e-5))
)
preset(
    "experiment",
    "two_joint_arm",
    {
        "defaults": ["/experiment/point_reach"],
        "experiment": "two_joint_arm",
        "env": {"family": "two_joint_arm", "task": "reach", "camera": {"names": ["top"]}},
        "iterations": 60,
    },
)
