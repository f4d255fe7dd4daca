"""Normalisation statistics are OpenVLA's, and a policy's tokens span them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gipo_envs import EnvironmentSpec
from gipo_vla.imitation import demonstrations
from gipo_vla.imitation.demonstrations import Demonstrations, Episode
from gipo_vla.imitation.statistics import action_statistics, dataset_statistics
from gipo_vla.policies.openvla_oft.normalization import ActionScaling, select_statistics


@pytest.fixture
def actions() -> np.ndarray:
    """(5000, 4): wide, narrow, still, and still but for noise."""
    rng = np.random.default_rng(0)
    wide, narrow = rng.uniform(-1, 1, 5000), rng.uniform(-0.1, 0.1, 5000)
    columns = [wide, narrow, np.zeros(5000), rng.normal(0, 1e-6, 5000)]
    return np.stack(columns, axis=1).astype(np.float32)


def test_percentiles(actions: np.ndarray) -> None:
    found = action_statistics(actions, keep_gripper=False)
    for name, share in (("q01", 0.01), ("q99", 0.99)):
        assert found[name][:2] == pytest.approx(np.quantile(actions[:, :2].astype(float), share, axis=0))
    assert found["mean"] == pytest.approx(actions.mean(0), abs=1e-6)
    assert found["max"] == pytest.approx(actions.max(0))
    assert found["mask"] == [True] * 4
    assert action_statistics(actions, keep_gripper=True)["mask"] == [True, True, True, False]


def test_a_dimension_that_hardly_moves_keeps_the_environments_range(actions: np.ndarray) -> None:
    found = action_statistics(actions, keep_gripper=False)
    assert found["q01"][2:] == [-1.0, -1.0] and found["q99"][2:] == [1.0, 1.0]


def test_tokens_resolve_a_narrow_dimension_better(actions: np.ndarray) -> None:
    """And the gripper of an environment that is not LIBERO's is not flipped."""
    entries = {"metaworld": {"action": action_statistics(actions, keep_gripper=False)}}
    chosen = select_statistics(entries, None, "test")
    assert chosen is not None
    scaling = ActionScaling(4, chosen.action, "auto")
    assert not scaling.flips_gripper
    given = torch.from_numpy(actions)
    decoded = scaling.to_environment(scaling.normalized(scaling.encode(given)))
    error = (decoded - given).abs()
    inside = given[:, 1].abs() < 0.097
    assert float(error[inside, 1].max()) < 0.0005
    assert float(error[:, 0].max()) < 0.03, "beyond the percentiles actions are cut to them"
    assert float(error[:, 2:].max()) < 0.004


@pytest.fixture
def libero(tmp_path: Path, libero_spec: EnvironmentSpec) -> Demonstrations:
    rng = np.random.default_rng(1)
    motion = rng.uniform(-0.9, 0.9, (40, 6))
    gripper = np.where(np.arange(40) < 10, -1.0, 1.0)[:, None]

    def episode(task: int) -> Episode:
        return Episode(
            task,
            -1,
            np.concatenate([motion, gripper], axis=1).astype(np.float32),
            np.arange(40),
            {
                "proprio": np.concatenate([rng.normal(size=(40, 7)), np.ones((40, 1))], 1).astype(np.float32),
                "images": np.zeros((40, 2, 32, 32, 3), np.uint8),
            },
        )

    demonstrations.write(tmp_path / "libero", libero_spec, [episode(0), episode(1)], "libero_hdf5")
    return demonstrations.read(tmp_path / "libero", libero_spec)


def test_liberos_gripper_is_stored_as_published(libero: Demonstrations) -> None:
    found = dataset_statistics(libero, "libero_spatial")
    entry = found["libero_spatial"]
    assert (entry["num_transitions"], entry["num_trajectories"]) == (80, 2)
    assert entry["action"]["mask"] == [True] * 6 + [False]
    assert (entry["action"]["min"][6], entry["action"]["max"][6]) == (0.0, 1.0)
    assert entry["action"]["mean"][6] == pytest.approx(0.25), "open (1) a quarter of the time"
    assert entry["proprio"]["mask"] == [True] * 7 + [False]

    chosen = select_statistics(found, None, "test")
    assert chosen is not None and chosen.proprio is not None
    scaling = ActionScaling(7, chosen.action, "auto")
    assert scaling.flips_gripper
    given = torch.from_numpy(np.array(libero.actions))
    decoded = scaling.to_environment(scaling.normalized(scaling.encode(given)))
    assert torch.equal(decoded[:, 6], given[:, 6])
    assert float((decoded - given).abs().max()) < 0.05
