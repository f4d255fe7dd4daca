"""metaworld as it is, to compare with."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from metaworld.types import Task
from numpy.typing import NDArray


@pytest.fixture(scope="session")
def plain_environment() -> Callable[[str, NDArray[np.float64]], Any]:
    """Makes a new, unchanged metaworld environment whose task is set as its benchmarks set it."""

    def construct(name: str, rand_vec: NDArray[np.float64]) -> Any:
        environment = ALL_V3_ENVIRONMENTS[name]()
        task = {"env_cls": ALL_V3_ENVIRONMENTS[name], "rand_vec": rand_vec, "partially_observable": False}
        environment.set_task(Task(env_name=name, data=pickle.dumps(task)))
        return environment

    return construct


@pytest.fixture(scope="session")
def make_expert() -> Callable[[str], Callable[[NDArray[Any]], NDArray[np.float32]]]:
    """Makes metaworld's scripted expert of a task: observation (39,) -> action (4,)."""

    def construct(name: str) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
        policy = ENV_POLICY_MAP[name]()

        def act(observation: NDArray[Any]) -> NDArray[np.float32]:
            with warnings.catch_warnings():  # "constant(s) may be too high": clipped here, as it asks
                warnings.simplefilter("ignore")
                action = policy.get_action(observation.copy())  # some experts write into it
            clipped: NDArray[np.float32] = np.clip(action, -1, 1).astype(np.float32)
            return clipped

        return act

    return construct
