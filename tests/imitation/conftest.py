"""Made-up episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from gipo_envs import ArraySpec, CameraSettings, EnvironmentSettings, EnvironmentSpec, make_spec
from gipo_vla.imitation.demonstrations import Episode

MakeEpisodes = Callable[..., Iterator[Episode]]

CAMERA = CameraSettings(("top",), 16, 16)


@pytest.fixture
def spec() -> EnvironmentSpec:
    """Two tasks of point_reach with state and small pictures."""
    return make_spec(EnvironmentSettings("point_reach", ("reach", "push"), ("state", "images"), CAMERA))


@pytest.fixture
def make_episodes(spec: EnvironmentSpec) -> MakeEpisodes:
    """``make_episodes(task, ...)``: an episode of each task given, of 3, 4, 5, ... random actions, observed
    before every second one."""

    def make(*tasks: int, seed: int = 0) -> Iterator[Episode]:
        rng = np.random.default_rng(seed)
        for number, task in enumerate(tasks):
            length = 3 + number
            at = np.arange(0, length, 2)
            yield Episode(
                task=task,
                initial_state=100 + number,
                actions=rng.uniform(-1, 1, (length, 2)).astype(np.float32),
                observed_at=at,
                observations={
                    "state": rng.normal(size=(len(at), 10)).astype(np.float32),
                    "images": rng.integers(0, 256, (len(at), 1, 16, 16, 3)).astype(np.uint8),
                },
            )

    return make


@pytest.fixture
def libero_spec() -> EnvironmentSpec:
    """LIBERO's shapes without LIBERO: two tasks, two cameras of 32 x 32."""
    return EnvironmentSpec(
        tasks=("pick_up_the_bowl", "open_the_drawer"),
        instructions=("pick up the bowl", "open the drawer"),
        observation={
            "task": ArraySpec((), "int64"),
            "proprio": ArraySpec((8,), "float32"),
            "images": ArraySpec((2, 32, 32, 3), "uint8"),
        },
        action_size=7,
        step_limit=100,
        action_repeat=1,
        end_on_success=True,
        reward_scale=1.0,
        frames_per_second=20.0,
    )
