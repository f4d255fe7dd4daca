"""A run resumed on another kind of device.

There is no GPU here: the checkpoint says that it was written on one, and holds what a generator of CUDA's has
for a state.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from gipo_vla.checkpoint import run_state
from gipo_vla.pipeline import Pipeline
from tests.conftest import MakePipeline, iterations, save_checkpoint


@pytest.fixture
def from_a_gpu(make_pipeline: MakePipeline, tmp_path: Path) -> tuple[Pipeline, Path]:
    """A pipeline after two iterations, and its checkpoint as a GPU would have written it."""
    pipeline = make_pipeline()
    iterations(pipeline, 2)
    folder = save_checkpoint(tmp_path / "checkpoints", pipeline)
    state = json.loads((folder / "run.json").read_text())
    assert state["device"] == "cpu"
    (folder / "run.json").write_text(json.dumps(state | {"device": "cuda"}))
    arrays = load_file(folder / "rank-00000/actor.safetensors")
    # Philox: a seed and an offset.
    save_file(arrays | {"generator": np.zeros(16, np.uint8)}, folder / "rank-00000/actor.safetensors")
    return pipeline, folder


def test_tensors_are_exact_and_changes_are_named(
    from_a_gpu: tuple[Pipeline, Path], make_pipeline: MakePipeline
) -> None:
    before, folder = from_a_gpu
    after = make_pipeline()
    loaded = run_state.load(folder, after)
    assert loaded.changes[0] == "device: cuda -> cpu"
    assert any("streams of actions: new" in line for line in loaded.changes)
    for name in ("policy", "behaviour"):
        for old, new in zip(
            getattr(before, name).parameters(), getattr(after, name).parameters(), strict=True
        ):
            assert torch.equal(old, new)
    kept, moments = before.learner.optimizer_tensors(), after.learner.optimizer_tensors()
    assert kept.keys() == moments.keys() and all(torch.equal(kept[name], moments[name]) for name in kept)
    assert len(after.replay) == len(before.replay) and after.learner.version == before.learner.version
    assert after.replay_rng.bit_generator.state == before.replay_rng.bit_generator.state
    old, new = before.actor.generator.get_state(), after.actor.generator.get_state()
    assert old.shape == new.shape and not torch.equal(old, new)
    assert iterations(after, 1)[0]["iteration"] == 3


def test_a_stream_that_the_run_has_not_used(
    from_a_gpu: tuple[Pipeline, Path], make_pipeline: MakePipeline
) -> None:
    """Neither the one it began with nor, resumed twice from one place, two different ones."""
    _, folder = from_a_gpu
    begun, first, second = (make_pipeline() for _ in range(3))
    for pipeline in (first, second):
        run_state.load(folder, pipeline)
    draws = [torch.rand(8, generator=pipeline.actor.generator) for pipeline in (begun, first, second)]
    assert torch.equal(draws[1], draws[2]) and not torch.equal(draws[0], draws[1])


def test_the_same_kind_of_device_continues_to_the_bit(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    pipeline, after = make_pipeline(), make_pipeline()
    iterations(pipeline, 1)
    folder = save_checkpoint(tmp_path / "checkpoints", pipeline)
    assert run_state.load(folder, after).changes == ()
    assert torch.equal(pipeline.actor.generator.get_state(), after.actor.generator.get_state())
