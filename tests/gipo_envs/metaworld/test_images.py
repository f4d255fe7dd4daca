"""Pictures: the right way up, alike at each time, and undisturbed by others in the process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gipo_envs import CameraSettings, Environment, EnvironmentSettings, UserError, make

pytestmark = pytest.mark.usefixtures("pictures")


def _environment(task: str | tuple[str, ...] = "door-open-v3", **camera: Any) -> Environment:
    return make(
        EnvironmentSettings(
            family="metaworld",
            task=task,
            observations=("images", "state"),
            camera=CameraSettings(**{"names": ("overview",), **camera}),
        )
    )


def _red_height(frame: NDArray[np.uint8]) -> float:
    """How high (0 bottom, 1 top) the red parts, the arm, are on average."""
    red, green, blue = (frame[..., channel].astype(int) for channel in range(3))
    rows = np.nonzero((red > 80) & (red > 3 * green) & (red > 3 * blue))[0]
    assert len(rows) > 50
    return 1.0 - float(rows.mean()) / frame.shape[0]


def test_shape_and_content() -> None:
    images = _environment(names=("corner2", "overview", "topview"), height=48, width=80).reset(0, seed=0)[
        "images"
    ]
    assert images.shape == (3, 48, 80, 3)
    assert images.dtype == np.uint8
    assert all(frame.std() > 20 for frame in images)
    assert (images[0] != images[1]).any()


def test_alike_at_each_time_and_undisturbed() -> None:
    environment = _environment(names=("corner", "overview"))
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 4)).astype(np.float32)
    start = environment.reset(1, seed=0)["images"]
    later = environment.step_chunk(actions).observation["images"]
    assert (start != later).any()
    others = [_environment(height=96, width=64), _environment("reach-v3"), _environment(quality="default")]
    for other in others:
        other.reset(2, seed=0)
        other.step_chunk(actions)
        other.render(40, 56)
        np.testing.assert_array_equal(environment.observe()["images"], later)
    environment.reset(9, seed=0)
    np.testing.assert_array_equal(environment.reset(1, seed=0)["images"], start)
    again = _environment(names=("corner", "overview"))
    np.testing.assert_array_equal(again.reset(1, seed=0)["images"], start)
    again.replay(actions)
    np.testing.assert_array_equal(again.observe()["images"], later)


def test_looking_changes_nothing() -> None:
    seeing = _environment()
    blind = make(EnvironmentSettings(family="metaworld", task="door-open-v3"))
    actions = np.random.default_rng(1).uniform(-1, 1, (10, 2, 4)).astype(np.float32)
    first, second = seeing.reset(3, seed=0), blind.reset(3, seed=0)
    for chunk in actions:
        np.testing.assert_array_equal(first["state"], second["state"])
        first, second = seeing.step_chunk(chunk).observation, blind.step_chunk(chunk).observation
    np.testing.assert_array_equal(first["state"], second["state"])


@pytest.mark.parametrize("name", ["overview", "corner", "corner2", "corner3", "corner4", "behindGripper"])
def test_the_right_way_up(name: str) -> None:
    """The arm, which stands on the floor and is raised, is seen to rise."""
    environment = _environment("reach-v3", names=(name,), height=96, width=96)
    low = environment.reset(0, seed=0)["images"][0]
    if name == "behindGripper":  # moves with the hand: the arm is above the hand
        assert _red_height(low) > 0.6
        return
    up = np.tile(np.array([0, 0, 1, 0], np.float32), (30, 1))
    high = environment.step_chunk(up).observation["images"][0]
    assert _red_height(high) > _red_height(low) + 0.02


def test_from_above() -> None:
    """Seen from above, the robot stands at the bottom and moves up when it reaches out, along y."""
    environment = _environment("reach-v3", names=("topview",), height=96, width=96)
    near = environment.reset(0, seed=0)["images"][0]
    out = np.tile(np.array([0, 1, 0, 0], np.float32), (30, 1))
    far = environment.step_chunk(out).observation["images"][0]
    assert _red_height(far) > _red_height(near) + 0.02


def test_fast_quality_is_the_same_scene() -> None:
    fast = _environment().reset(0, seed=0)["images"][0].astype(float)
    default = _environment(quality="default").reset(0, seed=0)["images"][0].astype(float)
    assert (fast != default).any()
    assert np.abs(fast - default).mean() < 12


def test_goals_are_seen() -> None:
    """Marker spheres are drawn where the goal of the initial state is."""
    environment = _environment("reach-v3", names=("topview",))
    assert (environment.reset(0, seed=0)["images"] != environment.reset(1, seed=0)["images"]).any()


def test_refused_where_nothing_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(UserError, match="MUJOCO_GL"):
        _environment()
    make(EnvironmentSettings(family="metaworld", task="reach-v3")).reset(0, seed=0)
