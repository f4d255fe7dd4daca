"""Ours is LIBERO's own environment to the bit: images, proprioception, physics, success; in any process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gipo_envs.libero import catalogue, environment, simulation
from gipo_envs.libero.simulation import TaskSimulation
from tests.gipo_envs.libero import reference, rollout_digest


def _reference(tmp_path: Path, suite: str, number: int, hard_reset: bool) -> Any:
    out = tmp_path / "reference.npz"
    program = [sys.executable, reference.__file__, str(out), suite, str(number), str(hard_reset)]
    subprocess.run(program, check=True, stdin=subprocess.DEVNULL)
    return np.load(out)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("suite", "number", "hard_reset"),
    [
        pytest.param("libero_spatial", 0, True, marks=pytest.mark.slow),
        ("libero_goal", 7, False),
        pytest.param("libero_10", 2, True, marks=pytest.mark.slow),
    ],
)
def test_same_bits(
    libero_assets: Path,
    pictures: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suite: str,
    number: int,
    hard_reset: bool,
) -> None:
    expected = _reference(tmp_path, suite, number, hard_reset)
    task = catalogue.tasks(suite)[number]
    monkeypatch.setattr(simulation, "SETTLE_STEPS", 0)
    ours = TaskSimulation(task, libero_assets)
    ours.begin_sampled(5)  # leaves no trace
    with simulation._global_generator(reference.SEED):
        ours._reset()
    episode = ours._begin_from(reference.initial_state(task))
    burning = set()
    for index, action in enumerate(reference.actions().astype(np.float64)):
        success = ours.step(episode, action)
        burning.add(bool((episode.view.site_colours != ours.model.site_rgba).any()))
        assert success == expected["success"][index]
        np.testing.assert_array_equal(ours.state(episode), expected["state"][index])
        np.testing.assert_array_equal(environment.proprioception(episode), expected["proprio"][index])
        for name, camera in environment.CAMERAS.items():
            side = reference.SIDE
            frame = ours.picture(episode, camera, side, side, "default", episode.view)[::-1]
            np.testing.assert_array_equal(frame, expected[name][index])
    assert (True in burning) == ("stove" in task.name)  # a flame went on after an observation was taken
    ours.close()


@pytest.mark.slow
def test_processes_agree(libero_assets: Path, pictures: None) -> None:
    """Whatever the order in which Python walks through sets."""
    digests = set()
    for hash_seed in ("1", "2"):
        result = subprocess.run(
            [sys.executable, rollout_digest.__file__],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(result.stdout)
    assert len(digests) == 1
