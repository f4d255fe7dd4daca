"""LIBERO under the whole pipeline with the tiny vision-language-action policy: on one rank, and on two."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from gipo_vla.run.resume import Start
from gipo_vla.settings import runs
from gipo_vla.telemetry.metrics import read_json_lines
from gipo_vla.train import resolve, train
from tests.faults.conftest import Launch, launch  # noqa: F401 (a fixture)

OVERRIDES = (
    "experiment=point_reach",
    "env=libero_spatial",
    "env.task=[0,1,2]",
    "env.step_limit=48",
    "env.camera.names=[agentview]",
    "env.camera.height=84",
    "env.camera.width=84",
    "env.camera.quality=fast",
    "env.camera.format=rotated",
    "policy=openvla_oft_tiny",
    "rollout.workers=2",
    "rollout.envs_per_worker=2",
    "rollout.env_steps=96",
    "rollout.temperature=1.6",
    "replay.capacity=64",
    "replay.segment_length=2",
    "learner.updates=2",
    "learner.batch_segments=4",
    "learner.micro_batch_segments=2",
    "iterations=2",
    "eval.episodes_per_task=1",
    "eval.video=false",
    "telemetry.wandb=off",
    "telemetry.report=false",
)


@pytest.mark.slow
def test_a_run_and_its_continuation_are_the_same(libero_assets: Path, tmp_path: Path) -> None:
    """Through rendering, replay, updates and evaluation; stopped half-way and resumed to the bit."""
    straight, halved = tmp_path / "straight", tmp_path / "halved"
    train(Start(runs.load("train", [*OVERRIDES, f"run_dir={straight}"]), None))
    train(Start(runs.load("train", [*OVERRIDES, f"run_dir={halved}", "stop_after=1"]), None))
    train(resolve([f"resume={halved}"]))
    assert (straight / "metrics.jsonl").read_bytes() == (halved / "metrics.jsonl").read_bytes()

    rows = read_json_lines(straight / "metrics.jsonl")
    assert [row["updates"] for row in rows] == [2, 4]
    assert rows[-1]["gradient_norm/policy"] > 0
    evaluation = json.loads((straight / "evaluation.json").read_text())
    assert evaluation["episodes"] == 3
    assert len(evaluation["tasks"]) == 3


TWO_RANKS = (
    "env.task=[0,1]",
    "env.step_limit=32",
    "rollout.workers=1",
    "rollout.task_sampling=success",
    "checkpoint.every_iterations=1",
)


@pytest.fixture
def tiny_overrides() -> tuple[str, ...]:
    """What ``launch`` begins with."""
    return (*OVERRIDES, *TWO_RANKS)


def weights(folder: Path, iteration: int) -> dict[str, str]:
    """Digests of everything that training moved, as of a checkpoint."""
    (checkpoint,) = folder.glob(f"checkpoints/{iteration:06d}-*")
    names = ("policy", "behaviour", "optimizer")
    files = {name: checkpoint / f"{name}.safetensors" for name in names}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


@pytest.mark.slow
def test_two_ranks_and_their_continuation_are_the_same(
    libero_assets: Path,
    launch: Launch,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Under torchrun; the second run goes on from what was on disk after the first of two iterations."""
    straight = launch(ranks=2, folder=tmp_path / "straight")
    straight.wait()
    rows = straight.rows()
    assert [row["updates"] for row in rows] == [2, 4]
    assert rows[-1]["gradient_norm/policy"] > 0
    assert weights(straight.folder, 1) != weights(straight.folder, 2)

    halved = tmp_path / "halved"
    shutil.copytree(straight.folder, halved, ignore=shutil.ignore_patterns("000002-*", "finished.json"))
    (halved / "checkpoints/latest").write_text(next(halved.glob("checkpoints/000001-*")).name + "\n")
    launch(f"resume={halved}", ranks=2, folder=halved).wait()
    assert (halved / "metrics.jsonl").read_bytes() == (straight.folder / "metrics.jsonl").read_bytes()
    assert weights(halved, 2) == weights(straight.folder, 2)
    evaluation = json.loads((halved / "evaluation.json").read_text())
    assert evaluation == json.loads((straight.folder / "evaluation.json").read_text())
