"""Small runs of ``gipo_vla.train`` on the GPU: the tiny vision-language-action network on random pixels."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from gipo_vla.benchmarks.suite.recording import write_random
from gipo_vla.distributed.children import telling_line
from gipo_vla.settings import runs

SETTINGS = (
    "experiment=point_reach",
    "env=recorded",
    "env.observations=[images,proprio]",
    "policy=openvla_oft_tiny",
    # Stopped before its end: nothing to evaluate, draw or film.
    "iterations=9",
    "rollout.workers=1",
    "rollout.envs_per_worker=4",
    "rollout.env_steps=128",
    "replay.capacity=200",
    "replay.segment_length=4",
    "learner.updates=2",
    "learner.batch_segments=4",
    "learner.micro_batch_segments=2",
    "checkpoint.every_iterations=2",
    "telemetry.wandb=off",
)


def settings_of(folder: Path, learner_device: str) -> list[str]:
    """Overrides of small runs whose observations are in a folder, where they are written if need be."""
    if not folder.exists():
        write_random(runs.load("train", SETTINGS), folder)
    return [*SETTINGS, f"env.assets={folder}", f"learner.device={learner_device}"]


class SmallRun:
    """``gipo_vla.train`` under way.

    Args:
        variables: of its environment, beside this process's own.
    """

    def __init__(self, log: Path, *overrides: str, variables: Mapping[str, str] | None = None) -> None:
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gipo_vla.train", *overrides],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **(variables or {})},
            )

    def ended(self, timeout: float | None = None) -> str | None:
        """Wait for its end; None if all went well, else what it said last."""
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            status = None
        if status == 0:
            return None
        log = self._log.read_text(errors="replace")
        # NCCL says why before torch says that.
        warned = [line for line in log.splitlines() if "NCCL WARN" in line]
        told = "hung" if status is None else f"exit status {status}"
        return f"{told}: {warned[0] if warned else telling_line(log)}"
