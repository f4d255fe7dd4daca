"""The 7B trained on a CPU: a run against its resumed copy, the numerical floor, and two ranks at the largest
size that two have room for. At small sizes ``tests/faults``, ``tests/learner`` and ``tests/distributed`` have
the same tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from gipo_vla.assembly import environment_spec
from gipo_vla.distributed import group
from gipo_vla.run.memory import GIB, Limits
from gipo_vla.run.plan import plan_run
from gipo_vla.settings import runs
from tests.full_size import steps
from tests.full_size.conftest import (
    FOLDER,
    HOURS,
    LAYERS,
    PIXELS,
    SEVEN_BILLION,
    Published,
    Size,
    fail_without_memory,
    needs_folder,
)

RUN = (
    "experiment=point_reach",
    "iterations=2",
    "env.observations=[images]",
    f"env.camera.height={PIXELS}",
    f"env.camera.width={PIXELS}",
    "env.step_limit=8",
    "policy=openvla_oft_7b",
    f"policy.architecture.image_size={PIXELS}",
    f"policy.architecture.layers={LAYERS}",
    "rollout.workers=1",
    "rollout.envs_per_worker=1",
    "rollout.env_steps=8",
    "rollout.stagger=false",
    "replay.segment_length=1",
    "replay.capacity=8",
    "learner.device=cpu",
    "learner.precision=bfloat16",
    "learner.threads=2",
    "learner.updates=1",
    "learner.batch_segments=1",
    "learner.micro_batch_segments=1",
    "checkpoint.every_iterations=1",
    "eval.episodes_per_task=1",
    "eval.video=false",
    "telemetry.wandb=off",
    "telemetry.report=false",
)
"""The least that a whole run is: a decision an iteration, and an update on it."""
only_full = pytest.mark.parametrize("size", [SEVEN_BILLION], indirect=True)


def command(*arguments: str, ranks: int = 1) -> None:
    """``python -m gipo_vla.train``, under torchrun where there are several ranks."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")
    plain = {name: value for name, value in os.environ.items() if name not in group.TORCHRUN_NAMES}
    subprocess.run(
        [sys.executable, *(launcher if ranks > 1 else ()), "-m", "gipo_vla.train", *arguments],
        env=plain | {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )


@only_full
def test_a_run_resumed_from_its_first_checkpoint_writes_the_same_metrics(
    size: Size, published: Published
) -> None:
    fail_without_memory()
    whole, resumed = size.folder / "whole", size.folder / "resumed"
    command(*RUN, f"policy.checkpoint={published.folder}", f"run_dir={whole}")
    # As it would be if it had been stopped after the first of two iterations.
    second = next(path.name for path in (whole / "checkpoints").glob("000002-*"))
    shutil.copytree(whole, resumed, ignore=shutil.ignore_patterns(second, "finished.json"))
    command(f"resume={resumed}")
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2] and rows[-1]["updates"] == 2
    record = json.loads((whole / "finished.json").read_text())["plan"]
    planned, measured = (record[kind]["process_bytes"] for kind in ("predicted", "measured"))
    # The plan counts a checkpoint that is still being written when an update steps: that is up to the disk.
    assert 0.9 * planned <= measured <= 1.02 * planned
    print(f"{size.name}: trained with {measured / GIB:.2f} GiB, planned {planned / GIB:.2f}")


@only_full
def test_the_floor_is_that_of_bfloat16(size: Size, published: Published) -> None:
    """4 observations together and one by one, by a learner and its twin, at a temperature of 1.6."""
    fail_without_memory()
    floor, peak = size.call(steps.floor, published.folder, size.chunk, size.action_size)
    print(f"{size.name}: {floor}, peak {peak / GIB:.2f} GiB")
    assert floor["together"]["max"] == 0, "the same batch, the same numbers"
    # Exactly 0 where the kernels add in an order that the number of rows does not change.
    assert floor["apart"]["mean"] <= 0.02
    assert floor["apart"]["max"] <= 0.1


@pytest.mark.slow
@pytest.mark.timeout(HOURS)
@needs_folder
def test_two_ranks_train_at_the_largest_size_that_both_have_room_for(tmp_path: Path) -> None:
    assert FOLDER is not None
    # torchrun's own process imports torch, and the kernel wants pages for the files that it reads.
    layers, overrides = most_layers(psutil.virtual_memory().available - GIB)
    print(f"two ranks with {layers} of {LAYERS} blocks of the language model")
    command(*overrides, f"run_dir={tmp_path / 'run'}", ranks=2)
    assert (tmp_path / "run/finished.json").is_file()
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(row["updates"], row["learner/skipped_total"]) for row in rows] == [(1, 0), (2, 0)]


def most_layers(available: int) -> tuple[int, tuple[str, ...]]:
    """The largest number of the language model's blocks with which two ranks fit into so much memory by the
    plan, and the overrides of such a run."""
    for layers in range(LAYERS, 0, -1):
        size = (
            f"policy.architecture.layers={layers}",
            "policy.random_weights=true",
            "learner.batch_segments=2",
        )
        overrides = (*RUN, *size, "rollout.env_steps=16")
        settings = runs.load("train", overrides)
        plan = plan_run(settings, environment_spec(settings), 2, torch.device("cpu"))
        if plan.problem(Limits(available, None, ranks=2)) is None:
            return layers, overrides
    pytest.fail(f"two ranks do not fit into {available / GIB:.1f} GiB with a single block", pytrace=False)
