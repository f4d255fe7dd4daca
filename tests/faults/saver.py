"""Saves a small pipeline's state again and again, in children that are killed: ``saver.py FOLDER overrides``.

Reads a number a line from stdin. For each it forks a child that saves without end in an empty folder, kills
it so many durations of a save after the first one began, then continues from what is left as a resumed run
would, and says what it found, as a line of JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gipo_vla import config
from gipo_vla.checkpoint import folder as folders
from gipo_vla.checkpoint import run_state
from gipo_vla.checkpoint.writer import CheckpointWriter
from gipo_vla.config import Config
from gipo_vla.distributed import group
from gipo_vla.pipeline import Pipeline, build_policy, environment_spec, plan


def build(settings: Config) -> Pipeline:
    device = torch.device("cpu")
    spec = environment_spec(settings)
    policy = build_policy(settings, spec, device)
    return Pipeline(settings, policy, plan(settings, policy, spec, 1), device)


def save_without_end(checkpoints: Path, pipeline: Pipeline) -> None:
    writer = CheckpointWriter(checkpoints, pipeline.device, keep=2)
    while True:
        pipeline.iteration += 1  # another checkpoint, of the same tensors
        run_state.begin(writer, pipeline, {"tracker_id": None})
        writer.wait()


def killed_after(seconds: float, checkpoints: Path, pipeline: Pipeline) -> None:
    child = os.fork()
    if child == 0:
        try:
            save_without_end(checkpoints, pipeline)
        finally:
            os._exit(1)
    while not any(checkpoints.glob(".partial-*")):  # the first save begins
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it was saving until it was killed"


def found(checkpoints: Path, pipeline: Pipeline, fingerprint: list[float]) -> dict[str, Any]:
    """What a resumed run finds; ``complete`` counts checkpoints that bear their name."""
    names = folders.names(checkpoints)
    leftovers = len(list(checkpoints.glob(".*")))
    if not names:
        return {"complete": 0, "leftovers": leftovers, "valid": True}
    chosen, damaged = folders.newest_valid(checkpoints)
    run_state.load(chosen, pipeline)
    return {
        "complete": len(names),
        "leftovers": leftovers,
        "valid": chosen.name == names[0] and not damaged and weights(pipeline) == fingerprint,
        "iteration": pipeline.iteration,
    }


def weights(pipeline: Pipeline) -> list[float]:
    tensors = pipeline.learner.optimizer_tensors()
    return [float(tensor.double().sum()) for _, tensor in sorted(tensors.items())]


def main() -> None:
    root, overrides = Path(sys.argv[1]), sys.argv[2:]
    settings = config.load("train", overrides)
    group.start(torch.device("cpu"))
    pipeline, other = build(settings), build(settings)
    try:
        pipeline.run_iteration()
        fingerprint = weights(pipeline)
        # A forked child has no threads for collective calls.
        tensors = pipeline.learner.optimizer_tensors()
        pipeline.learner.optimizer_tensors = lambda: tensors  # type: ignore[method-assign]
        checkpoints = root / "checkpoints"
        began = time.monotonic()
        run_state.save(checkpoints, pipeline, {"tracker_id": None})
        duration = time.monotonic() - began
        shutil.rmtree(checkpoints)
        for line in sys.stdin:
            killed_after(float(line) * duration, checkpoints, pipeline)
            print(json.dumps(found(checkpoints, other, fingerprint)), flush=True)
            shutil.rmtree(checkpoints, ignore_errors=True)
    finally:
        pipeline.close()
        other.close()


if __name__ == "__main__":
    main()
