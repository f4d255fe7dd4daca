"""Whole iterations measured, on a simulator and on what was recorded of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gipo_vla import benchmark
from gipo_vla.checkpoint.resume import resolve
from gipo_vla.train import train
from tests.conftest import TINY, TINY_VLA

VLA = (
    *(text for text in TINY if not text.startswith("policy.")),
    *TINY_VLA,
    "rollout.env_steps=96",
)


def figures(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert benchmark.main(list(arguments)) == 0
    printed: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return printed


@pytest.mark.medium
def test_training_is_measured_with_random_weights(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures("training", "rounds=1", *VLA, capsys=capsys)
    assert found["benchmark"] == "training" and found["updates_timed"] == 2
    for name in ("learner_samples_per_second", "samples_per_second", "env_steps_per_second"):
        assert isinstance(found[name], float) and found[name] > 0
    assert found["synchronized_bytes"] == 4 * 746_545
    assert found["device_bytes"] is None
    # One policy, its twin and its optimiser: what was planned, and no second copy of anything large.
    assert isinstance(found["process_bytes"], int) and isinstance(found["process_bytes_planned"], int)
    assert found["process_bytes"] < 2 * found["process_bytes_planned"]


@pytest.mark.medium
def test_a_recording_stands_in_for_its_simulator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Recorded, measured without the simulator, and trained on to the end."""
    folder = tmp_path / "recording"
    told = figures("record", f"out={folder}", "frames=10", *VLA, capsys=capsys)
    assert told["frames"] == 10 and (folder / "images.npy").is_file()
    elsewhere = (*VLA[1:], "experiment=point_reach", "env=recorded", "env.task=all", f"env.assets={folder}")
    assert figures("training", "rounds=1", *elsewhere, capsys=capsys)["task"] == "reach"
    train(resolve([*elsewhere, f"run_dir={tmp_path / 'run'}"]))
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["episodes"] == 4
