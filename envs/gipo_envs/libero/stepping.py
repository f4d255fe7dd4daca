"""robosuite's ``step`` for LIBERO without what nobody looks at: the same bits in less than half of the time.

An env step is 25 physics steps. In robosuite 1.4 each of them computes MuJoCo's whole forward dynamics three
times (before the controller, inside it, and in ``mj_step``) and polls some thirty sensors. Here:

- positions and velocities do not change between the three, so the second and third time only the
  acceleration stage is computed (``mj_forwardSkip``). It cannot be left out: each one leaves a better warm
  start for the constraint solver, which the last bits of the next one depend on;
- sensors are read once, in the physics step in which robosuite's would be (``OBSERVED_SUBSTEP``), and cameras
  not at all: what they would show is kept (``View``) for whoever wants to draw it;
- MuJoCo's indices are looked up by name once.

The controller's mathematics is robosuite's own code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

OBSERVED_SUBSTEP = 23
"""The physics step of 0 to 24 after which robosuite's sensors sample.

They sample 20 times a second and count from a reset, which polls them twice (``reset``,
``set_init_state``): two physics steps' worth of time, by which all later samples come early. So an
observation is 2 to 4 ms older than the state at the end of its env step, in the published evaluation too.
"""

_VELOCITY_STAGE = int(mujoco.mjtStage.mjSTAGE_VEL)
_SKIP_SENSORS = 1


@dataclass(frozen=True)
class View:
    """What an observation shows: the state in the moment when robosuite's sensors sample."""

    positions: Floats
    """All joint positions, from which a picture follows. MuJoCo's step computes where things are before it
    moves them, so a picture is one physics step older than ``gripper``."""
    site_colours: NDArray[np.float32]
    """A stove's flame is a site that is made visible."""
    hand_position: Floats
    """(3,) metres, world frame."""
    hand_quaternion: Floats
    """(4,) x, y, z, w."""
    gripper: Floats
    """(2,) joint positions of the fingers, metres."""


class Stepper:
    """Steps one robosuite environment of LIBERO.

    Args:
        environment: made by ``installation.make_simulator`` and reset at least once, so that its robot has
            its indices.
    """

    def __init__(self, environment: Any) -> None:
        robot = environment.robots[0]
        self._environment = environment
        self._robot = robot
        self._model = environment.sim.model._model
        self._data = environment.sim.data._data
        self._substeps = int(environment.control_timestep / environment.model_timestep)
        self._site = robot.eef_site_id
        self._hand = self._model.body(robot.robot_model.eef_name).id
        self._joints = np.array(robot._ref_joint_pos_indexes)
        self._velocities = np.array(robot._ref_joint_vel_indexes)
        self._arm_actuators = np.array(robot._ref_joint_actuator_indexes)
        self._torque_limits = robot.torque_limits
        self._fingers = np.array(robot._ref_gripper_joint_pos_indexes)
        self._finger_actuators = np.array(robot._ref_joint_gripper_actuator_indexes)
        low, high = self._model.actuator_ctrlrange[self._finger_actuators].T
        self._finger_middle, self._finger_reach = 0.5 * (high + low), 0.5 * (high - low)
        self._jacobians = np.zeros((2, 3, self._model.nv))
        self._mass_matrix = np.zeros((self._model.nv, self._model.nv))

    def adopt_controller(self) -> None:
        """Speed up the controller that the last reset made."""
        controller = self._robot.controller
        controller.update = partial(self._update, controller)

    def step(self, action: Floats) -> View:
        """One env step under an action (7,): 25 physics steps. The gripper's last entry closes it above 0.

        Afterwards MuJoCo's data is as robosuite's ``step`` leaves it.
        """
        model, data, controller = self._model, self._data, self._robot.controller
        gripper = self._robot.gripper
        view: View | None = None
        for substep in range(self._substeps):
            mujoco.mj_forward(model, data)
            if substep == 0:
                controller.set_goal(action[:6])
            torques = np.clip(controller.run_controller(), *self._torque_limits)
            opening = gripper.format_action(action[6:])
            data.ctrl[self._finger_actuators] = self._finger_middle + self._finger_reach * opening
            data.ctrl[self._arm_actuators] = torques
            if substep == OBSERVED_SUBSTEP:
                positions = data.qpos.copy()
            mujoco.mj_checkPos(model, data)
            mujoco.mj_checkVel(model, data)
            mujoco.mj_forwardSkip(model, data, _VELOCITY_STAGE, _SKIP_SENSORS)
            mujoco.mj_checkAcc(model, data)
            mujoco.mj_Euler(model, data)
            if substep == OBSERVED_SUBSTEP:
                view = self.view(positions)
        assert view is not None
        return view

    def view(self, positions: Floats) -> View:
        """Read the sensors; ``positions`` are those that the present kinematics were computed from."""
        data = self._data
        return View(
            positions=positions,
            site_colours=self._model.site_rgba.copy(),
            hand_position=data.site_xpos[self._site].copy(),
            hand_quaternion=data.xquat[self._hand][[1, 2, 3, 0]],
            gripper=data.qpos[self._fingers],
        )

    def _update(self, controller: Any, force: bool = False) -> None:
        """``Controller.update`` of robosuite, right after a forward computation of the same state."""
        if not (controller.new_update or force):
            return
        model, data = self._model, self._data
        mujoco.mj_forwardSkip(model, data, _VELOCITY_STAGE, _SKIP_SENSORS)
        controller.ee_pos = data.site_xpos[self._site].copy()
        controller.ee_ori_mat = data.site_xmat[self._site].reshape(3, 3).copy()
        translation, rotation = self._jacobians
        mujoco.mj_jacSite(model, data, translation, rotation, self._site)
        controller.ee_pos_vel = np.dot(translation, data.qvel)
        controller.ee_ori_vel = np.dot(rotation, data.qvel)
        controller.joint_pos = data.qpos[self._joints]
        controller.joint_vel = data.qvel[self._velocities]
        controller.J_pos = translation[:, self._velocities]
        controller.J_ori = rotation[:, self._velocities]
        controller.J_full = np.vstack([controller.J_pos, controller.J_ori])
        mujoco.mj_fullM(model, self._mass_matrix, data.qM)
        controller.mass_matrix = self._mass_matrix[self._velocities, :][:, self._velocities]
        controller.new_update = False
