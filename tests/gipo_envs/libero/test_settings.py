"""What env.* means for LIBERO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gipo_envs import (
    EVALUATION_KEYS_START,
    ArraySpec,
    CameraSettings,
    EnvironmentSettings,
    EnvironmentSpec,
    UserError,
    make_spec,
)
from gipo_envs.libero import catalogue

pytestmark = pytest.mark.usefixtures("libero_assets")


def _spec(family: str = "libero_goal", task: Any = "all", **settings: Any) -> EnvironmentSpec:
    return make_spec(EnvironmentSettings(family=family, task=task, **{"reward": "sparse", **settings}))


@pytest.mark.parametrize(("suite", "limit"), catalogue.STEP_LIMITS.items())
def test_a_suite(suite: str, limit: int) -> None:
    spec = _spec(suite)
    assert len(spec.tasks) == len(spec.instructions) == (90 if suite == "libero_90" else 10)
    assert (spec.step_limit, spec.action_size, spec.action_repeat) == (limit, 7, 1)
    assert spec.end_on_success
    assert spec.evaluation_ends_on_success
    assert spec.evaluation_keys == (EVALUATION_KEYS_START, EVALUATION_KEYS_START + 50)
    assert spec.training_keys == (0, EVALUATION_KEYS_START)
    assert spec.frames_per_second == 20


def test_tasks_by_number_and_name() -> None:
    everything = _spec().tasks
    for task, expected in (
        (3, everything[3:4]),
        ("3", everything[3:4]),
        (everything[7], everything[7:8]),
        ((0, everything[2], "4"), (everything[0], everything[2], everything[4])),
    ):
        assert _spec(task=task).tasks == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": 10}, "unknown task 10: numbers are 0 to 9"),
        ({"task": "turn_on_the_stov"}, "nearest: turn_on_the_stove"),
        ({"task": (0, "open_the_middle_drawer_of_the_cabinet")}, "twice"),
        ({"reward": "dense"}, "reward is 'dense', but LIBERO's tasks only tell success: use sparse"),
        ({"observations": ("images",), "camera": CameraSettings(names=("front",))}, "camera.names 'front'"),
        ({"assets": "/nowhere"}, "env.assets is /nowhere"),
        ({"evaluation_states": "all"}, "unknown evaluation_states 'all'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        _spec(**settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("image_format", "side"), [("raw", 256), ("rotated", 256), ("openvla", 224)])
def test_observations(image_format: str, side: int) -> None:
    camera = CameraSettings(names=("agentview", "wrist"), height=256, width=256, format=image_format)
    spec = _spec(observations=("images", "proprio", "state"), camera=camera)
    assert spec.observation["images"] == ArraySpec((2, side, side, 3), "uint8")
    assert spec.observation["proprio"] == ArraySpec((8,), "float32")
    assert spec.observation["state"].shape == (8 + 41 + 37,)


def test_training_on_the_published_states() -> None:
    spec = _spec(train_on_evaluation_states=True)
    assert spec.training_keys == spec.evaluation_keys


def test_evaluation_on_states_of_the_tasks_sampler() -> None:
    spec = _spec(evaluation_states="sampled")
    assert spec.evaluation_keys == (EVALUATION_KEYS_START + 50, 2 * EVALUATION_KEYS_START)
    assert spec.training_keys == (0, EVALUATION_KEYS_START)


def test_a_spec_needs_no_simulator() -> None:
    import subprocess
    import sys

    program = (
        "import sys; from gipo_envs import *\n"
        "make_spec(EnvironmentSettings(family='libero_10', task='all', reward='sparse'))\n"
        "print([name for name in ('mujoco', 'robosuite', 'torch', 'libero') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("experiment", "sizes"),
    [
        ("libero_object_mlp", {"proprio": (8,), "landmarks": (18,)}),
        ("libero_goal_mlp", {"proprio": (8,), "landmarks": (18,)}),
        ("libero_goal_three_mlp", {"state": (86,)}),
        ("libero_object_oft_tiny", {"images": (2, 84, 84, 3), "proprio": (8,)}),
    ],
)
def test_experiments_are_start_and_training_of_the_same(
    libero_assets: Path, experiment: str, sizes: dict[str, tuple[int, ...]]
) -> None:
    from gipo_vla.settings import runs

    start = runs.load_sft([f"experiment={experiment}_sft"])
    training = runs.load("train", [f"experiment={experiment}", "init_from=runs/start"])
    assert start.env == training.env and start.policy == training.policy
    assert training.env.reward == "sparse"
    observed = make_spec(training.env).observation
    assert {name: array.shape for name, array in observed.items() if name != "task"} == sizes


def test_configs_compose(libero_assets: Path) -> None:
    from gipo_vla.settings import runs

    for suite in catalogue.STEP_LIMITS:
        settings = runs.load("train", ["experiment=point_reach", f"env={suite}", "env.task=[0,1]"]).env
        spec = make_spec(settings)
        assert spec.tasks == tuple(task.name for task in catalogue.tasks(suite)[:2])
        assert spec.observation["images"].shape == (2, 256, 256, 3)
