"""The simulator of the examples keeps the protocol: the tests are those of the families that are built in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gipo_envs import Environment, EnvironmentSettings, Observation, make
from tests.examples.conftest import Example
from tests.gipo_envs.conftest import pictures  # noqa: F401
from tests.gipo_envs.test_protocol import *  # noqa: F403

Controller = Callable[[Observation], NDArray[np.float32]]


@pytest.fixture
def make_solvable(example: Example) -> Callable[..., Environment]:
    """What the protocol's tests make their environments with."""
    example("own_simulator")

    def construct(**settings: Any) -> Environment:
        return make(EnvironmentSettings(family="puck", task="reach", **settings))

    return construct


@pytest.fixture
def controller() -> Controller:
    """Drives the puck to the target and brakes."""

    def act(observation: Observation) -> NDArray[np.float32]:
        velocity, to_target = observation["state"][2:4], observation["state"][6:8]
        action: NDArray[np.float32] = np.clip(10 * to_target - velocity, -1, 1).astype(np.float32)
        return action

    return act
