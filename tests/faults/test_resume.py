"""Stopping and resuming changes no number; another number of ranks keeps what can be kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gipo_vla.train import resolve, train
from tests.conftest import TINY_VLA

ITERATIONS = ("iterations=6", "policy.normalizer_iterations=4", "rollout.sync_every=3")


def exact_tensors(checkpoint: Path) -> dict[str, str]:
    """Digests of the files that hold parameters, statistics and optimizer."""
    names = ("policy.safetensors", "behaviour.safetensors", "optimizer.safetensors")
    return {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in names}


def segments_held(rank: Path) -> int:
    return int(json.loads((rank / "replay/replay.json").read_text())["segments"])


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(f"checkpoints/{pattern}")
    return found


VLA = (
    *TINY_VLA,
    "rollout.env_steps=96",
    "rollout.envs_per_worker=2",
    "iterations=4",
)
METAWORLD = (
    *("env=metaworld", "env.task=button-press-v3", "env.step_limit=60"),
    *("replay.segment_length=5", "rollout.env_steps=96", "rollout.envs_per_worker=2", "iterations=4"),
)
TASKS = ("env.task=[reach,push]", "rollout.task_sampling=success")
LORA = ("policy.training=lora", "policy.activation_checkpointing=true")


@pytest.mark.parametrize(
    "settings",
    [
        ITERATIONS,
        (*ITERATIONS, "credit=group", "rollout.group_size=2", *TASKS),
        pytest.param(METAWORLD, marks=pytest.mark.medium),
        pytest.param(VLA, marks=pytest.mark.slow),
        pytest.param((*VLA, *LORA), marks=pytest.mark.medium),
    ],
    ids=["mlp", "mlp-groups", "metaworld", "vla", "vla-lora"],
)
def test_one_rank_stopped_at_n_of_2n_writes_the_same_metrics(
    tmp_path: Path, tiny_overrides: tuple[str, ...], settings: tuple[str, ...]
) -> None:
    if settings[: len(VLA)] == VLA:  # "policy.hidden" and the like are the MLP's
        tiny_overrides = tuple(text for text in tiny_overrides if not text.startswith("policy."))
    common = (*tiny_overrides, *settings, "eval.every_env_steps=320")
    train(resolve([*common, f"run_dir={tmp_path / 'straight'}", "checkpoint.every_iterations=1"]))
    iterations = len((tmp_path / "straight/metrics.jsonl").read_text().splitlines())
    halves = tmp_path / "halves"
    train(resolve([*common, f"run_dir={halves}", f"stop_after={iterations // 2}"]))
    assert not (halves / "finished.json").exists()
    train(resolve([f"resume={halves}"]))
    for name in ("metrics.jsonl", "evaluations.jsonl", "evaluation.json"):
        assert (halves / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    rows = [json.loads(line) for line in (halves / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(1, iterations + 1))
    assert (halves / "finished.json").exists()
    last = [only(folder, f"{iterations:06d}-*") for folder in (halves, tmp_path / "straight")]
    assert exact_tensors(last[0]) == exact_tensors(last[1])


def test_settings_say_which_checkpoints_stay(tmp_path: Path, tiny_overrides: tuple[str, ...]) -> None:
    kept = ("checkpoint.every_iterations=1", "checkpoint.keep=1", "checkpoint.keep_every=2")
    train(resolve([*tiny_overrides, "iterations=9", *kept, f"run_dir={tmp_path / 'run'}", "stop_after=5"]))
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("0*"))
    assert names == ["000002-0000004", "000004-0000008", "000005-0000010"]
    assert (tmp_path / "run/checkpoints/latest").read_text() == "000005-0000010\n"


@pytest.fixture
def two_ranks(launch: Callable[..., Any], tmp_path: Path) -> Any:
    """A run of two ranks, stopped in the middle."""
    run = launch(*ITERATIONS, "learner.zero_stage=2", "stop_after=3", ranks=2)
    run.wait()
    return run


@pytest.mark.medium
def test_two_ranks_stopped_and_continued_with_two_and_with_one(
    launch: Callable[..., Any], two_ranks: Any, going_on: Callable[..., Any], tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(two_ranks.folder, alone)
    straight = launch(*ITERATIONS, "learner.zero_stage=2", ranks=2, folder=tmp_path / "straight")
    straight.wait()
    going_on(two_ranks, ranks=2)
    # Also two runs of two ranks that were started apart.
    metrics = [run.folder / "metrics.jsonl" for run in (two_ranks, straight)]
    assert metrics[0].read_bytes() == metrics[1].read_bytes()
    assert [row["iteration"] for row in two_ranks.rows()] == [1, 2, 3, 4, 5, 6]

    # 2 -> 1: what is loaded and saved again is the same, to the bit.
    train(resolve([f"resume={alone}", "stop_after=3"]))
    before, after = only(alone, "000003-0000006"), only(alone, "000003-0000006-2")
    assert exact_tensors(before) == exact_tensors(after)
    assert [path.name for path in after.glob("rank-*")] == ["rank-00000"]
    train(resolve([f"resume={alone}"]))
    rows = [json.loads(line) for line in (alone / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["updates"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert rows[:3] == straight.rows()[:3]
    assert (alone / "finished.json").exists()


@pytest.mark.slow
def test_one_rank_continued_with_two(
    going_on: Callable[..., Any],
    launch: Callable[..., Any],
    tmp_path: Path,
    tiny_overrides: tuple[str, ...],
) -> None:
    folder = tmp_path / "run"
    train(resolve([*tiny_overrides, *ITERATIONS, f"run_dir={folder}", "stop_after=3"]))
    again = launch(f"resume={folder}", "stop_after=3", ranks=2, folder=folder)
    again.wait()
    before, after = only(folder, "000003-0000006"), only(folder, "000003-0000006-2")
    assert exact_tensors(before) == exact_tensors(after)
    assert len(list(after.glob("rank-*"))) == 2
    for line in (
        "ranks: 1 -> 2, environments a rank: 4 -> 4",
        "parameters, optimizer, statistics and counters: exactly as they were",
        "segments kept, dealt out to 2 rank(s)",
        "begin episode number",
        "random streams",
    ):
        assert again.log.count(line) == 1, "said once, by rank 0"
    held = [segments_held(path) for path in after.glob("rank-*")]
    assert sum(held) == segments_held(before / "rank-00000") and abs(held[0] - held[1]) <= 1

    continued = going_on(again, ranks=2)
    assert [row["iteration"] for row in continued.rows()] == [1, 2, 3, 4, 5, 6]
    assert continued.rows()[-1]["updates"] == 12
    assert (folder / "finished.json").exists()
