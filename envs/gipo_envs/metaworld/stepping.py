"""metaworld's ``SawyerXYZEnv`` with a cheaper step: the same bits in a good half of the time.

Of a plain ``env.step`` MuJoCo takes less than half; the rest is Python that looks names up, stacks small
arrays and computes scalar rewards through general numpy functions. What changed here, each change with its
reason, and what did not:

- physics is untouched: the same ``mj_step`` and the ``mj_forward`` after it (which leaves its mark in the
  solver's warm start, so leaving it out would change the next step);
- ``mj_rnePostConstraint`` is left out: it fills force fields that no task and no later step reads;
- target sites are not repositioned: ``mj_forward`` computes them anew from the model right afterwards;
- the touch check is left out where it only feeds a diagnostic (``info["grasp_success"]``);
- MuJoCo's arrays are looked up by name once, and observations are assembled in place;
- hand resets that were simulated before from the same state are restored (``_reset_hand``);
- the rewards' mathematics runs through the stand-ins of ``scalar_math``.

metaworld's modules are not patched: a subclass is made for each task, so plain environments stay plain, and
the tests compare the two over all 50 tasks.
"""

from __future__ import annotations

import math
from functools import cache
from types import FunctionType, MappingProxyType
from typing import Any, NamedTuple

import mujoco
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from numpy.typing import NDArray

from gipo_envs.metaworld.scalar_math import REPLACEMENTS
from gipo_envs.metaworld.shared_model import shared_model

TOUCH_DECIDES_SUCCESS = frozenset({"SawyerStickPushEnvV3", "SawyerStickPullEnvV3"})
"""Classes whose ``info["success"]`` depends on the gripper touching the object; elsewhere only
``info["grasp_success"]`` does."""

HAND_RESETS_REMEMBERED = 256
"""States kept a task and process, about 2 kB each: evaluation comes back to the same ones, and the
environments of a group start from one."""

_PHYSICS_STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)
"""All that ``mj_step`` depends on besides the model (MuJoCo's documentation, "State and control")."""


class PreparedAction(NamedTuple):
    """An action with the arithmetic done that does not depend on the state."""

    x: float
    y: float
    z: float
    """Displacement of the mocap body, metres; rounded to float32 as metaworld's own arithmetic does."""
    gripper: float
    raw: NDArray[np.float32]
    """(4,) as given; rewards read it."""


class FastSawyer(SawyerXYZEnv):
    """What the overrides below replace in ``SawyerXYZEnv``; a task's own methods still come first."""

    _touch_decides_success: bool
    _prev_obs: NDArray[np.float64]

    def _initialize_simulation(self) -> tuple[Any, Any]:
        """Use the shared model, and look up, once, everything that a step needs: MuJoCo's arrays never
        move."""
        self.shared_model = shared_model(self.fullpath)
        self.shared_model.hand_to(self)
        model = self.shared_model.model
        data = mujoco.MjData(model)
        # Read-only, for they must stay views of MuJoCo's arrays: a reset copies dictionaries and lists.
        self._body_positions = MappingProxyType(
            {model.body(index).name: data.xpos[index] for index in range(model.nbody)}
        )
        self._site_positions = MappingProxyType(
            {model.site(index).name: data.site_xpos[index] for index in range(model.nsite)}
        )
        self._hand = self._body_positions["hand"]
        self._right_claw = self._body_positions["rightclaw"]
        self._left_claw = self._body_positions["leftclaw"]
        self._right_tip = self._site_positions["rightEndEffector"]
        self._left_tip = self._site_positions["leftEndEffector"]
        self._mocap_position = data.mocap_pos[0]
        self._mocap_quaternion = data.mocap_quat[0]
        self._control = data.ctrl
        self._mocap_bounds = (*self.mocap_low.tolist(), *self.mocap_high.tolist())
        return model, data

    def show_goal(self) -> None:
        """Put the goal into observations; call once after construction.

        metaworld hides it (zeros) unless told otherwise. The observation space, by which steps are clipped,
        is cached with the hidden goal's bounds of zero: kept, it would hide the goal again.
        """
        self._partially_observable = False
        self.__dict__.pop("sawyer_observation_space", None)
        space = self.sawyer_observation_space
        self._observation_low, self._observation_high = space.low, space.high

    def prepare(self, actions: NDArray[np.float32]) -> list[PreparedAction]:
        """Actions (K, 4) for ``advance``: ``set_xyz_action``'s clipping and scaling, all rows at once."""
        displacements = (actions[:, :3].clip(-1, 1) * self.action_scale).tolist()
        return [
            PreparedAction(x, y, z, gripper, raw)
            for (x, y, z), gripper, raw in zip(displacements, actions[:, 3].tolist(), actions)
        ]

    def advance(self, action: PreparedAction) -> tuple[float, bool]:
        """``step`` without its copies: returns (reward, momentary success), keeps the observation in
        ``_last_stable_obs``."""
        low_x, low_y, low_z, high_x, high_y, high_z = self._mocap_bounds
        x, y, z = self._mocap_position.tolist()
        self._mocap_position[:] = (
            min(max(x + action.x, low_x), high_x),
            min(max(y + action.y, low_y), high_y),
            min(max(z + action.z, low_z), high_z),
        )
        self._mocap_quaternion[:] = (1, 0, 1, 0)
        self._control[:] = (action.gripper, -action.gripper)
        mujoco.mj_step(self.model, self.data, nstep=self.frame_skip)
        self.curr_path_length += 1
        mujoco.mj_forward(self.model, self.data)

        frame = self._get_curr_obs_combined_no_goal()
        observation = np.empty(39)
        observation[:18] = frame
        observation[18:36] = self._prev_obs
        observation[36:] = self._target_pos
        self._prev_obs = frame
        observation.clip(self._observation_low, self._observation_high, out=observation)
        self._last_stable_obs = observation
        reward, info = self.evaluate_state(observation, action.raw)
        return float(reward), bool(info["success"])

    def _get_curr_obs_combined_no_goal(self) -> NDArray[np.float64]:
        """(18,): hand position, gripper opening in 0..1, position and quaternion of one or two objects."""
        frame = np.zeros(18)
        frame[:3] = self._hand
        between_claws = self._right_claw - self._left_claw
        frame[3] = min(max(math.sqrt(between_claws.dot(between_claws)) / 0.1, 0.0), 1.0)
        positions, quaternions = self._get_pos_objects(), self._get_quat_objects()
        frame[4:7] = positions[:3]
        frame[7:11] = quaternions[:4]
        if len(positions) > 3:
            frame[11:14] = positions[3:6]
            frame[14:18] = quaternions[4:8]
        return frame

    def get_endeff_pos(self) -> NDArray[np.float64]:
        return self._hand

    @property
    def tcp_center(self) -> NDArray[np.float64]:
        return (self._right_tip + self._left_tip) / 2.0

    def get_body_com(self, body_name: str) -> NDArray[np.float64]:
        return self._body_positions[body_name]

    def _get_site_pos(self, site_name: str) -> NDArray[np.float64]:
        return self._site_positions[site_name].copy()

    @property
    def touching_main_object(self) -> bool:
        # A Python loop over all contacts, up to a third of a step; see TOUCH_DECIDES_SUCCESS.
        return self._touch_decides_success and super().touching_main_object

    def _reset_hand(self, steps: int = 50) -> None:
        """Drive the hand to where episodes begin, or restore that if it was simulated before.

        A reset does this twice, and the first time always from the same state; where a task moves no body
        of the model, so does the second. What is kept is the physics before the last of the steps, under
        everything that it depends on; the last step is simulated, so that all derived arrays (positions,
        contacts) are MuJoCo's own.
        """
        state = np.empty(mujoco.mj_stateSize(self.model, _PHYSICS_STATE))
        mujoco.mj_getState(self.model, self.data, state, _PHYSICS_STATE)
        key = b"".join(
            array.tobytes()
            for array in (state, self.model.body_pos, np.asarray(self.hand_init_pos, np.float64))
        )
        remembered = self.shared_model.hand_resets.get(key)
        if remembered is None:
            super()._reset_hand(steps - 1)
            mujoco.mj_getState(self.model, self.data, state, _PHYSICS_STATE)
            self.shared_model.hand_resets[key] = state
            if len(self.shared_model.hand_resets) > HAND_RESETS_REMEMBERED:
                self.shared_model.hand_resets.popitem(last=False)
        else:
            self.shared_model.hand_resets.move_to_end(key)
            mujoco.mj_setState(self.model, self.data, remembered, _PHYSICS_STATE)
        super()._reset_hand(1)


@cache
def fast_class(task_class: type[SawyerXYZEnv]) -> Any:
    """A subclass of a task that steps as described above.

    The order of the bases puts ``FastSawyer`` between the task and ``SawyerXYZEnv``: what a task overrides
    itself stays. The task's own methods are compiled code with global names; copies of them see the
    stand-ins of ``scalar_math`` under those names.
    """
    new_class = type(
        f"Fast{task_class.__name__}",
        (task_class, FastSawyer),
        {"_touch_decides_success": task_class.__name__ in TOUCH_DECIDES_SUCCESS},
    )
    for owner, names in (
        (task_class, ("compute_reward", "_get_quat_objects", "_gripper_caging_reward", "_reward_pos")),
        (SawyerXYZEnv, ("_gripper_caging_reward",)),
    ):
        for name in names:
            if name in vars(owner) and name not in vars(new_class):
                setattr(new_class, name, _with_stand_ins(vars(owner)[name], new_class, task_class))
    return new_class


def _with_stand_ins(method: Any, new_class: type, task_class: type) -> Any:
    """A copy of a plain or static method whose module's names are replaced by the stand-ins."""
    function = method.__func__ if isinstance(method, staticmethod) else method
    replacements = {name: value for name, value in REPLACEMENTS.items() if name in function.__globals__}
    # Static helpers are called through the class's global name.
    global_names = {**function.__globals__, **replacements, task_class.__name__: new_class}
    copied = FunctionType(
        function.__code__, global_names, function.__name__, function.__defaults__, function.__closure__
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return staticmethod(copied) if isinstance(method, staticmethod) else copied
