"""Normalisation statistics of demonstrations, as OpenVLA's ``dataset_statistics.json`` holds them.

Discrete action tokens span the 1st to the 99th percentile of each action dimension, so they are spent where
the actions are. The statistics travel inside the checkpoint: a policy acts with those it was cloned with.

Source: ``get_dataset_statistics`` of OpenVLA (``prismatic/vla/datasets/rlds/utils/data_utils.py``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gipo_envs import families
from gipo_vla.imitation.demonstrations import Demonstrations

STILL = 1e-4
"""A dimension whose percentiles lie nearer together hardly moves."""


def dataset_statistics(demonstrations: Demonstrations, family: str) -> dict[str, Any]:
    """``{family: {"action": ..., "proprio": ..., "num_transitions": T, "num_trajectories": E}}``.

    Args:
        family: name of the environment's family; a gripper that opens or closes is stored as LIBERO's
            published data sets have it.
    """
    actions = np.asarray(demonstrations.actions[demonstrations.action_rows])
    binary = families()[family].binary_gripper
    if binary:  # -1 open and +1 closed, published as 1 open and 0 closed (``libero_dataset_transform``)
        actions = np.concatenate([actions[:, :-1], 0.5 * (1.0 - actions[:, -1:])], axis=1)
    entry: dict[str, Any] = {
        "action": action_statistics(actions, binary),
        "num_transitions": len(actions),
        "num_trajectories": len(demonstrations.records),
    }
    if "proprio" in demonstrations.observations:
        proprio = _columns(np.asarray(demonstrations.observations["proprio"][demonstrations.rows]))
        entry["proprio"] = proprio | {"mask": _moves(proprio).tolist()}
    return {family: entry}


def action_statistics(actions: NDArray[np.float32], keep_gripper: bool) -> dict[str, Any]:
    """Of actions (T, A).

    Args:
        keep_gripper: leave the last dimension as it is when normalising (mask False), as OpenVLA does where
            it is open or closed.
    """
    columns = _columns(actions)
    moves = _moves(columns)
    # Stretching a dimension that hardly moves would make its noise the whole range of tokens. It keeps the
    # environment's range instead (not mask False, by which OpenVLA marks a gripper that is to be flipped).
    columns["q01"] = np.where(moves, columns["q01"], -1.0).tolist()
    columns["q99"] = np.where(moves, columns["q99"], 1.0).tolist()
    mask = [True] * actions.shape[1]
    mask[-1] = not keep_gripper
    return columns | {"mask": mask}


def _columns(rows: NDArray[np.float32]) -> dict[str, list[float]]:
    values = rows.astype(np.float64)
    return {
        "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(),
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "q01": np.quantile(values, 0.01, axis=0).tolist(),
        "q99": np.quantile(values, 0.99, axis=0).tolist(),
    }


def _moves(columns: dict[str, list[float]]) -> NDArray[np.bool_]:
    moves: NDArray[np.bool_] = np.subtract(columns["q99"], columns["q01"]) > STILL
    return moves
