"""What the environments' tests share."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gipo_envs import Environment, EnvironmentSettings, Observation, UserError, gl, make

Controller = Callable[[Observation], NDArray[np.float32]]


def _steer_point(observation: Observation) -> NDArray[np.float32]:
    """Solves ``reach`` and ``reach-far``."""
    action: NDArray[np.float32] = np.clip(observation["state"][8:10] / 0.15, -1, 1)
    return action


@pytest.fixture(params=["point_reach", "metaworld"])
def family(request: pytest.FixtureRequest) -> str:
    """Families whose behaviour the protocol fixes."""
    return str(request.param)


@pytest.fixture
def make_solvable(family: str) -> Callable[..., Environment]:
    """Makes a quickly solvable environment of the family, with the settings given."""

    def construct(**settings: Any) -> Environment:
        task = {"point_reach": "reach", "metaworld": "drawer-close-v3"}[family]
        return make(EnvironmentSettings(family=family, task=task, **settings))

    return construct


@pytest.fixture
def controller(family: str) -> Controller:
    """Solves the task of ``make_solvable``."""
    if family == "point_reach":
        return _steer_point
    from metaworld.policies import ENV_POLICY_MAP

    expert = ENV_POLICY_MAP["drawer-close-v3"]()

    def act(observation: Observation) -> NDArray[np.float32]:
        with warnings.catch_warnings():  # "constant(s) may be too high": clipped here, as it asks
            warnings.simplefilter("ignore")
            action: NDArray[np.float32] = np.clip(expert.get_action(observation["state"]), -1, 1)
        return action.astype(np.float32)

    return act


@pytest.fixture(scope="session")
def pictures() -> None:
    """Skips the test where nothing can be rendered."""
    try:
        gl.choose()
    except UserError as error:
        pytest.skip(str(error))
