"""The experiments of docs/libero.md at toy size: start and training, as two commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gipo_vla import evaluate, sft, train
from gipo_vla.telemetry.metrics import read_json_lines

SHARED = (
    "env.step_limit=48",
    "rollout.workers=1",
    "rollout.envs_per_worker=2",
    "eval.episodes_per_task=1",
    "eval.video=false",
    "telemetry.wandb=off",
)
# An expert needs its time, and so does whoever looks at what it did.
START = ("env.step_limit=150", "demonstrations.count=1", "sft.steps=2", "sft.batch_size=8")
TRAINING = (
    "iterations=2",
    "rollout.env_steps=96",
    "replay.capacity=64",
    "replay.segment_length=2",
    "learner.updates=2",
    "learner.policy_every=1",
    "learner.batch_segments=4",
    "learner.micro_batch_segments=4",
    "learner.value_only_updates=2",
    "telemetry.report=false",
)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["libero_goal_mlp", "libero_goal_three_mlp", "libero_object_oft_tiny"])
def test_start_and_training_and_a_published_evaluation(
    libero_assets: Path, tmp_path: Path, experiment: str, capfd: pytest.CaptureFixture[str]
) -> None:
    start, run = tmp_path / "start", tmp_path / "run"
    assert sft.main([f"experiment={experiment}_sft", *SHARED, *START, f"run_dir={start}"]) == 0
    training = [f"experiment={experiment}", *SHARED, *TRAINING, f"init_from={start}", f"run_dir={run}"]
    mix = ["replay.demonstration_share=0.1", "demonstrations=recorded", f"demonstrations.path={start}"]
    assert train.main([*training, *mix]) == 0
    rows = read_json_lines(run / "metrics.jsonl")
    assert [row["updates"] for row in rows] == [2, 4]
    assert rows[0]["gradient_norm/policy"] == 0 < rows[1]["gradient_norm/policy"]
    assert all(row["demonstration/loss"] > 0 for row in rows)
    capfd.readouterr()
    # On published states: the limit is left at a toy's.
    published = ["eval=libero_published", "eval.episodes_per_task=1", "env.step_limit=16"]
    assert evaluate.main([f"checkpoint={run}", f"versus={start}", *published]) == 0
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert found["episodes"] == len(found["tasks"]) == found["versus"]["paired"]["sampled"]["episodes"]
