"""Saves a small pipeline's state again and again, in children that are killed: ``saver.py FOLDER overrides``.

Reads a number a line from stdin: how many saves the child lives to see. For each it forks a child that
saves without end in an empty folder and is killed, then continues from what is left as a resumed run would,
and says what it found, as a line of JSON. How the moment is found takes turns: at that many saves' worth of
file operations (opening, renaming: the same moment on every machine), then at that many saves' duration
(which may fall into the middle of a write).
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

from gipo_vla.assembly import build_policy, environment_spec
from gipo_vla.checkpoint import folder as folders
from gipo_vla.checkpoint import run_state
from gipo_vla.checkpoint.writer import CheckpointWriter
from gipo_vla.distributed import group
from gipo_vla.pipeline import Pipeline
from gipo_vla.run.plan import plan_collection
from gipo_vla.settings import runs
from gipo_vla.settings.schema import TrainingSettings


def build(settings: TrainingSettings) -> Pipeline:
    device = torch.device("cpu")
    spec = environment_spec(settings)
    policy = build_policy(settings, spec, device)
    return Pipeline(settings, policy, plan_collection(settings, spec, 1), device)


def save_without_end(checkpoints: Path, pipeline: Pipeline) -> None:
    writer = CheckpointWriter(checkpoints, keep=2)
    while True:
        pipeline.iteration += 1  # another checkpoint, of the same tensors
        run_state.begin(writer, pipeline, {"tracker_id": None})
        writer.wait()


class FileOperations:
    """Counts this process's file operations; kills it at one of them where a limit is set."""

    def __init__(self) -> None:
        self.count = 0
        self.limit: int | None = None
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" and not event.startswith("os."):
            return
        self.count += 1
        if self.limit is not None and self.count >= self.limit:
            self.limit = None  # the kill is an operation of its own
            os.kill(os.getpid(), signal.SIGKILL)


def killed(
    checkpoints: Path, pipeline: Pipeline, operations: FileOperations, *, after: int | None, seconds: float
) -> None:
    """Saves in a child that dies ``after`` so many file operations or, where that is None, ``seconds``."""
    child = os.fork()
    if child == 0:
        try:
            operations.limit = None if after is None else operations.count + after
            save_without_end(checkpoints, pipeline)
        finally:
            os._exit(1)
    if after is None:
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
    settings = runs.load("train", overrides)
    group.start(torch.device("cpu"))
    pipeline, other = build(settings), build(settings)
    try:
        pipeline.run_iteration()
        fingerprint = weights(pipeline)
        # A forked child has no threads for collective calls.
        tensors = pipeline.learner.optimizer_tensors()
        pipeline.learner.optimizer_tensors = lambda: tensors  # type: ignore[method-assign]
        checkpoints = root / "checkpoints"
        operations = FileOperations()
        began = time.monotonic()
        writer = CheckpointWriter(checkpoints, keep=2)
        run_state.begin(writer, pipeline, {"tracker_id": None})
        writer.wait()
        duration, of_a_save = time.monotonic() - began, operations.count
        shutil.rmtree(checkpoints)
        for trial, line in enumerate(sys.stdin):
            saves, timed = float(line), trial % 2 == 1
            after = None if timed else max(1, round(saves * of_a_save))
            killed(checkpoints, pipeline, operations, after=after, seconds=saves * duration)
            print(json.dumps({"timed": timed} | found(checkpoints, other, fingerprint)), flush=True)
            shutil.rmtree(checkpoints, ignore_errors=True)
    finally:
        pipeline.close()
        other.close()


if __name__ == "__main__":
    main()
