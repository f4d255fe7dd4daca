"""What was recorded, played back behind the environment protocol."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gipo_envs import EnvironmentSettings, UserError, make, make_spec, needs_opengl, recorded

FRAMES = 7


@pytest.fixture
def settings(tmp_path: Path) -> EnvironmentSettings:
    original = make_spec(EnvironmentSettings("point_reach", ("reach", "push"), step_limit=12))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (FRAMES, 2, 8, 10, 3), dtype=np.uint8)
    proprio = rng.random((FRAMES, 2), np.float32)
    recorded.write(tmp_path / "recording", original, {"images": images, "proprio": proprio})
    return EnvironmentSettings(
        "recorded", "all", ("images", "proprio"), reward="sparse", assets=str(tmp_path / "recording")
    )


def test_the_spec_is_that_of_the_original(settings: EnvironmentSettings) -> None:
    spec = make_spec(settings)
    assert spec.tasks == ("reach", "push") and spec.action_size == 2 and spec.step_limit == 12
    assert spec.observation["images"].shape == (2, 8, 10, 3) and spec.observation["proprio"].shape == (2,)
    assert not needs_opengl(settings)


def test_episodes_repeat_to_the_bit_and_some_succeed(settings: EnvironmentSettings) -> None:
    first, second = make(settings), make(settings)
    outcomes = set()
    for state in range(12):
        for environment in (first, second):
            environment.reset(state, seed=0, task=state % 2)
        done = False
        while not done:
            one, other = (env.step_chunk(np.zeros((4, 2), np.float32)) for env in (first, second))
            for name, array in one.observation.items():
                assert np.array_equal(array, other.observation[name])
            assert np.array_equal(one.rewards, other.rewards)
            done = one.terminated or one.truncated
        outcomes.add((one.terminated, bool(one.success.any())))
    assert outcomes == {(True, True), (False, False)}


def test_replaying_restores(settings: EnvironmentSettings) -> None:
    played, restored = make(settings), make(settings)
    actions = np.zeros((3, 2), np.float32)
    for environment in (played, restored):
        environment.reset(5, seed=0)
    expected = played.step_chunk(actions).observation
    restored.replay(actions)
    assert all(np.array_equal(array, expected[name]) for name, array in restored.observe().items())
    assert restored.render(20, 30).shape == (20, 30, 3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"assets": None}, "benchmark record"), ({"observations": ("state",)}, "proprio, images only")],
    ids=str,
)
def test_what_is_missing_is_named(settings: EnvironmentSettings, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as error:
        make_spec(replace(settings, **changes))
    assert named in str(error.value)
