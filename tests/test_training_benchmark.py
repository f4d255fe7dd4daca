"""Whole iterations measured, on a simulator and on what was recorded of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gipo_envs.errors import UserError
from gipo_vla import benchmark
from gipo_vla.checkpoint.resume import resolve
from gipo_vla.policies.openvla_oft import build_network
from gipo_vla.policies.openvla_oft.build_network import draw_weights, finish, network_on_meta
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings
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


def test_a_recording_needs_a_place() -> None:
    with pytest.raises(UserError, match="out is missing"):
        benchmark.main(["record", *TINY])


def test_random_weights_are_drawn_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the meta device on, every tensor is made once, where it stays."""
    settings = OpenVlaOftSettings(random_weights=True)
    assert all(p.is_meta for p in network_on_meta(settings, 56, None).parameters()), "7B costs nothing yet"

    from tests.policies.openvla_oft.test_memory import small

    network = network_on_meta(small(), 56, 8)
    drawn: dict[str, int] = {}
    place = build_network.place

    def remember(owner: torch.nn.Module, name: str, value: torch.Tensor, *rest: object) -> None:
        drawn[name] = value.data_ptr()
        place(owner, name, value, *rest)  # type: ignore[arg-type]
        assert owner.get_parameter(name).data_ptr() == value.data_ptr(), f"{name} was copied"

    monkeypatch.setattr(build_network, "place", remember)
    draw_weights(network, torch.device("cpu"), torch.float32)
    finish(network, torch.device("cpu"))
    assert set(drawn) == {name for name, _ in network.named_parameters()}
