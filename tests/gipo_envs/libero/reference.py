"""LIBERO's own environment, as the published evaluation steps it.

``python reference.py OUT SUITE TASK HARD`` writes what every step shows to an npz file. A process of its
own, because under OSMesa robosuite's OpenGL contexts and ours disturb each other.
"""

from __future__ import annotations

import sys

import numpy as np

from gipo_envs.libero import assets, catalogue, installation

SEED, STATE, SIDE, STEPS = 7, 3, 96, 20


def actions() -> np.ndarray:
    """(20, 7): at rest, then random motion, then a closing gripper."""
    drawn = np.random.default_rng(0).uniform(-1, 1, (STEPS, 7)).astype(np.float32)
    drawn[:4] = (0, 0, 0, 0, 0, 0, -1)
    drawn[STEPS // 2 :, 6] = 1
    return drawn


def initial_state(task: catalogue.Task) -> np.ndarray:
    """A published state; the last joint, of a stove a knob, turns."""
    state = np.array(catalogue.published_states(task)[STATE])
    if "stove" in task.name:
        state[-1] = 20.0
    return state


def main(out: str, suite: str, number: str, hard_reset: str) -> None:
    wrapper = installation.environments()
    installation.use_assets(assets.find(None))
    task = catalogue.tasks(suite)[int(number)]
    environment = wrapper.OffScreenRenderEnv(
        bddl_file_name=str(task.definition),
        camera_heights=SIDE,
        camera_widths=SIDE,
        hard_reset=hard_reset == "True",
    )
    environment.seed(SEED)
    environment.env.reset()
    environment.env.robots[0].gripper.current_action *= 0
    environment.set_init_state(initial_state(task))
    rows: dict[str, list[np.ndarray]] = {}
    for action in actions().astype(np.float64):
        observation, _, success, _ = environment.step(action)
        quaternion = observation["robot0_eef_quat"].copy()
        row = {
            "agentview": observation["agentview_image"],
            "wrist": observation["robot0_eye_in_hand_image"],
            "proprio": np.concatenate(
                [
                    observation["robot0_eef_pos"],
                    wrapper.suite.utils.transform_utils.quat2axisangle(quaternion),
                    observation["robot0_gripper_qpos"],
                ]
            ).astype(np.float32),
            "state": environment.sim.get_state().flatten()[1:],
            "success": np.array(success),
        }
        for name, array in row.items():
            rows.setdefault(name, []).append(array.copy())
    np.savez(out, **{name: np.stack(arrays) for name, arrays in rows.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
