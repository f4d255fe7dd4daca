"""What all tests share: markers, one thread, tiny runs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported: tests run side by side, and more threads than cores only take turns.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import torch

from gipo_vla.assembly import build_policy, environment_spec
from gipo_vla.checkpoint import run_state
from gipo_vla.checkpoint.writer import CheckpointWriter
from gipo_vla.distributed import group
from gipo_vla.pipeline import Pipeline
from gipo_vla.run.plan import plan_collection
from gipo_vla.settings import runs
from gipo_vla.settings.cloning import SftSettings
from gipo_vla.settings.schema import TrainingSettings

MakeConfig = Callable[..., TrainingSettings]
MakeSft = Callable[..., SftSettings]
MakePipeline = Callable[..., Pipeline]
Row = dict[str, Any]

TINY = (
    "experiment=point_reach",
    "iterations=2",
    "policy.hidden=[16]",
    "policy.bins=16",
    "rollout.workers=1",
    "rollout.envs_per_worker=4",
    "rollout.env_steps=160",
    "replay.capacity=640",
    "replay.segment_length=10",
    "learner.updates=2",
    "learner.batch_segments=4",
    "learner.micro_batch_segments=2",
    "eval.episodes_per_task=4",
    "eval.video=false",
    "telemetry.wandb=off",
    "telemetry.report=false",
)
"""A run of a second or two."""

TINY_VLA = (
    "policy=openvla_oft_tiny",
    "env.observations=[images,proprio]",
    "env.camera.height=84",
    "env.camera.width=84",
    "replay.segment_length=5",
)
"""The same with the tiny vision-language-action policy (and without the settings of an MLP)."""


TINY_SFT = (
    "experiment=metaworld_mlp_sft",
    "policy=mlp",
    "env=point_reach",
    "env.task=reach",
    "env.step_limit=40",
    "env.action_repeat=1",
    "policy.hidden=[32]",
    "policy.bins=32",
    "demonstrations.count=5",
    "sft.steps=8",
    "sft.batch_size=16",
    "sft.micro_batch_size=8",
    "sft.steps_per_iteration=4",
    "sft.validation_share=0.2",
    "rollout.workers=1",
    "rollout.envs_per_worker=4",
    "eval.episodes_per_task=4",
    "eval.video=false",
    "telemetry.wandb=off",
)
"""A cloning run of a second or two."""


def which(program: str) -> str | None:
    """Path of a program, of this virtual environment first (which need not be activated)."""
    return shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("medium", "slow")):
            item.add_marker("fast")
    # The long ones first: one of them at the end would keep one of two processes waiting.
    items.sort(key=lambda item: item.get_closest_marker("fast") is not None)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


MUST_HAVE_LIBERO = bool(os.environ.get("CI")) and not os.environ.get("WITHOUT_LIBERO")
"""Continuous integration has LIBERO's assets, except on hosted machines, which say so."""
needs_libero = pytest.mark.skipif(
    not (os.environ.get("LIBERO_ASSETS") or MUST_HAVE_LIBERO), reason="LIBERO_ASSETS is not set"
)
"""Skipped where there is no LIBERO; in continuous integration, which must have it, they fail."""


@pytest.fixture
def tiny_overrides() -> tuple[str, ...]:
    """Overrides of ``gipo_vla.train`` that make a run tiny."""
    return TINY


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    """``make_config("key=value", ...)``: a tiny run on point_reach with these settings; its ``run_dir`` is
    ``tmp_path / "run"``."""

    def make(*overrides: str) -> TrainingSettings:
        return runs.load("train", [*TINY, f"run_dir={tmp_path / 'run'}", *overrides])

    return make


@pytest.fixture
def make_sft(tmp_path: Path) -> MakeSft:
    """``make_sft("key=value", ...)``: a tiny cloning run; its ``run_dir`` is ``tmp_path / "sft"``."""

    def make(*overrides: str) -> SftSettings:
        return runs.load_sft([*TINY_SFT, f"run_dir={tmp_path / 'sft'}", *overrides])

    return make


@pytest.fixture
def process_group() -> Iterator[None]:
    """A process group of this process alone, which the processes that later tests start must not inherit."""
    with group.joined(torch.device("cpu")):
        yield


@pytest.fixture
def make_pipeline(make_config: MakeConfig, process_group: None) -> Iterator[MakePipeline]:
    """``make_pipeline("key=value", ...)``: the pipeline of a tiny run."""
    pipelines: list[Pipeline] = []

    def make(*overrides: str) -> Pipeline:
        settings = make_config(*overrides)
        spec, device = environment_spec(settings), torch.device("cpu")
        policy = build_policy(settings, spec, device)
        pipelines.append(Pipeline(settings, policy, plan_collection(settings, spec, 1), device))
        return pipelines[-1]

    yield make
    for pipeline in pipelines:
        pipeline.close()


def iterations(pipeline: Pipeline, count: int) -> list[Row]:
    """Metrics of so many iterations."""
    rows = []
    for _ in range(count):
        done = pipeline.run_iteration()
        assert done is not None
        rows.append(done[0])
    return rows


def save_checkpoint(checkpoints: Path, pipeline: Pipeline) -> Path:
    """Writes a checkpoint and returns its folder."""
    writer = CheckpointWriter(checkpoints, keep=2)
    run_state.begin(writer, pipeline, {"tracker_id": None})
    writer.wait()
    assert writer.newest is not None
    return checkpoints / writer.newest


def stopped_and_resumed(
    make_pipeline: MakePipeline, overrides: Sequence[str], checkpoints: Path, saves: Callable[[int], bool]
) -> tuple[list[Row], int]:
    """The rows of three iterations of a run that is stopped wherever it can be, and how often it was.

    Args:
        saves: whether the stop of this number, from 1, goes through a checkpoint and a new pipeline.
    """
    pipeline, stops = make_pipeline(*overrides), 0
    rows: list[Row] = []
    while len(rows) < 3:
        done = pipeline.run_iteration(lambda: True)
        if done is not None:
            rows.append(done[0])
            continue
        stops += 1
        if saves(stops):
            folder = save_checkpoint(checkpoints, pipeline)
            pipeline.close()
            pipeline = make_pipeline(*overrides)
            run_state.load(folder, pipeline)
    return rows, stops
