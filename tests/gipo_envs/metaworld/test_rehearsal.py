"""Resets that are simulated ahead of the episodes that need them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from numpy.typing import NDArray

from gipo_envs import Environment, EnvironmentSettings, make


def played(environment: Environment, rehearsed: int | None) -> list[NDArray[np.float32]]:
    """States of an episode and of the beginning of the next, which is rehearsed in the middle of the first
    where its key is given."""
    actions = np.random.default_rng(0).uniform(-1, 1, (20, environment.spec.action_size)).astype(np.float32)
    states = [environment.reset(1001, 0)["state"]]
    for number, action in enumerate(actions):
        if number == 10 and rehearsed is not None:
            environment.rehearse(rehearsed, 0)  # type: ignore[attr-defined]
        states.append(environment.step_chunk(action[None]).observation["state"])
    states.append(environment.reset(1002, 0)["state"])
    return [*states, environment.step_chunk(actions[:1]).observation["state"]]


@pytest.mark.parametrize("task", ["button-press-v3", "door-lock-v3", "pick-place-v3"])
def test_a_rehearsal_changes_nothing_and_spares_the_reset(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    simulate = SawyerXYZEnv._reset_hand

    def counted(self: Any, count: int = 50) -> None:
        steps.append(count)
        simulate(self, count)

    monkeypatch.setattr(SawyerXYZEnv, "_reset_hand", counted)
    environment = make(EnvironmentSettings("metaworld", task))
    rehearsed = played(environment, 1002)
    # Each of the two halves of a reset simulates the last of its steps in any case.
    assert steps[-2:] == [1, 1], "nothing is left to simulate but that"
    environment.simulation._shared_model.hand_resets.clear()  # type: ignore[attr-defined]
    plain = played(environment, None)
    assert max(steps[-4:]) > 1
    np.testing.assert_array_equal(rehearsed, plain)
