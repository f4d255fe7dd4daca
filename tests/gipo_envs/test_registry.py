"""Settings are checked at the border, quickly, and specs are those of the environments."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gipo_envs import (
    EVALUATION_KEYS_START,
    ArraySpec,
    CameraSettings,
    EnvironmentSettings,
    UserError,
    make,
    make_spec,
)

METAWORLD = EnvironmentSettings(family="metaworld", task="reach-v3")
POINT_REACH = EnvironmentSettings(family="point_reach", task="reach")


@pytest.mark.parametrize(
    "settings",
    [
        METAWORLD,
        POINT_REACH,
        replace(METAWORLD, task="MT10", reward="sparse", action_repeat=3, step_limit=100),
        replace(METAWORLD, task=("push-v3", "reach-v3"), observations=("proprio",), end_on_success=True),
        replace(
            POINT_REACH,
            task=("reach", "push"),
            observations=("images", "state"),
            reward_scale=0.5,
            camera=CameraSettings(names=("near", "top"), height=20, width=30),
        ),
    ],
)
def test_spec_is_the_environments(settings: EnvironmentSettings) -> None:
    environment = make(settings)
    assert make_spec(settings) == environment.spec
    observation = environment.reset(initial_state=0, seed=0, task=len(environment.spec.tasks) - 1)
    assert {name: ArraySpec(array.shape, str(array.dtype)) for name, array in observation.items()} == (
        environment.spec.observation
    )
    assert observation["task"] == len(environment.spec.tasks) - 1
    environment.close()


def test_defaults() -> None:
    dense, sparse = make_spec(METAWORLD), make_spec(replace(METAWORLD, reward="sparse"))
    assert (dense.step_limit, dense.action_size, dense.frames_per_second) == (500, 4, 80.0)
    assert (dense.end_on_success, dense.reward_scale) == (False, 0.02)
    assert (sparse.end_on_success, sparse.reward_scale) == (True, 1.0)
    assert dense.training_keys == (0, EVALUATION_KEYS_START)
    assert dense.evaluation_keys[0] == EVALUATION_KEYS_START
    assert len(make_spec(replace(METAWORLD, task="MT10")).tasks) == 10
    assert len(set(make_spec(replace(METAWORLD, task="MT50")).instructions)) == 50
    assert make_spec(replace(METAWORLD, step_limit=7, action_repeat=2)).actions_limit == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (replace(METAWORLD, family="metawrld"), "nearest: metaworld"),
        (replace(METAWORLD, task="reech-v3"), "unknown task 'reech-v3'; nearest: reach-v3"),
        (replace(METAWORLD, task="MT11"), "MT10"),
        (replace(METAWORLD, task=()), "task is empty"),
        (replace(METAWORLD, task=("reach-v3", "reach-v3")), "twice"),
        (replace(METAWORLD, task=("MT10", "reach-v3")), "unknown task 'MT10'"),
        (replace(METAWORLD, observations=()), "observations is empty"),
        (replace(METAWORLD, observations=("pixels",)), "unknown observations 'pixels'"),
        (replace(METAWORLD, observations=("state", "state")), "twice"),
        (replace(METAWORLD, reward="shaped"), "unknown reward 'shaped'"),
        (replace(METAWORLD, reward_scale=0.0), "reward_scale"),
        (replace(METAWORLD, reward_scale=float("nan")), "reward_scale"),
        (replace(METAWORLD, action_repeat=0), "action_repeat"),
        (replace(METAWORLD, step_limit=0), "step_limit"),
        (replace(METAWORLD, step_limit=501), "500"),
        (replace(POINT_REACH, task="reach-v3"), "unknown task"),
    ],
)
def test_wrong_settings(settings: EnvironmentSettings, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_spec(settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ({"names": ("corner9",)}, "nearest: corner"),
        ({"names": ()}, "camera.names is empty"),
        ({"names": ("corner", "corner")}, "twice"),
        ({"height": 0}, "camera.height"),
        ({"width": -1}, "camera.width"),
        ({"quality": "best"}, "camera.quality"),
        ({"format": "jpg"}, "unknown camera.format 'jpg'"),
    ],
)
def test_wrong_cameras(camera: dict[str, Any], message: str) -> None:
    settings = replace(METAWORLD, observations=("images",), camera=CameraSettings(**camera))
    with pytest.raises(UserError, match=message):
        make_spec(settings)
    make_spec(replace(settings, observations=("state",)))  # nobody looks, so nobody minds


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    step_limit=st.integers(1, 500),
    action_repeat=st.integers(1, 600),
)
def test_sizes_follow_settings(height: int, width: int, step_limit: int, action_repeat: int) -> None:
    camera = CameraSettings(names=("corner", "overview"), height=height, width=width)
    spec = make_spec(
        replace(
            METAWORLD,
            observations=("images",),
            camera=camera,
            step_limit=step_limit,
            action_repeat=action_repeat,
        )
    )
    assert spec.observation["images"] == ArraySpec((2, height, width, 3), "uint8")
    assert (spec.actions_limit - 1) * action_repeat < step_limit <= spec.actions_limit * action_repeat


def test_reset_arguments(make_solvable: Any) -> None:
    environment = make_solvable()
    for arguments in (
        {"initial_state": -1},
        {"seed": -1},
        {"task": 1},
        {"step_limit": 0},
        {"step_limit": environment.spec.step_limit + 1},
    ):
        with pytest.raises(ValueError):
            environment.reset(**{"initial_state": 0, "seed": 0, **arguments})


def _run(program: str) -> str:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_specs_need_no_simulator() -> None:
    program = (
        "import sys; from gipo_envs import *; from gipo_envs import registry, gl, image_formats\n"
        "make_spec(EnvironmentSettings(family='metaworld', task='MT50', observations=('images', 'state')))\n"
        "print([name for name in ('mujoco', 'metaworld', 'gymnasium', 'torch', 'gipo_vla', 'scipy')"
        " if name in sys.modules])"
    )
    assert _run(program) == "[]"


def test_environments_need_no_torch() -> None:
    program = (
        "import sys; from gipo_envs import *\n"
        "make(EnvironmentSettings(family='metaworld', task='reach-v3')).reset(0, 0)\n"
        "print('torch' in sys.modules or 'gipo_vla' in sys.modules)"
    )
    assert _run(program) == "False"
