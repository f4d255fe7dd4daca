"""What differs between one kind of run and another: the part that the lifecycle drives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from gipo_envs import EnvironmentSpec
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.checkpoint.run_state import Loaded
from gipo_vla.checkpoint.writer import CheckpointWriter
from gipo_vla.policies.base import Policy
from gipo_vla.rollout.pool import WorkerPool
from gipo_vla.settings.runs import RunSettings
from gipo_vla.telemetry.console import Position

Row = dict[str, Any]
"""A line of metrics.jsonl, the same on every rank."""
ShouldStop = Callable[[], bool]
"""A collective call: whether all ranks are to leave the iteration where it is."""


def trainable_parameters(policy: Policy) -> int:
    """How many numbers of a policy train."""
    assert isinstance(policy, nn.Module)
    return sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)


class Trainer(Protocol):
    """Trains a policy, iteration by iteration, on every rank.

    A trainer is made from settings, spec, device, the run's checkpoints or None (with them the policy takes
    nothing from ``init_from``), and the plan; a UserError refuses what does not go together. Then ``prepare``
    and ``start`` are called once each, in this order, then ``run_iteration`` until the run is done or left,
    and at last ``close``.
    """

    @property
    def settings(self) -> RunSettings: ...
    @property
    def spec(self) -> EnvironmentSpec: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def policy(self) -> Policy: ...
    @property
    def worker_processes(self) -> Sequence[int]:
        """Ids of the simulator processes that train with it, whose memory is measured."""

    def prepare(self, folder: RunFolder, checkpoint: Path | None) -> Mapping[str, str]:
        """Obtain what training needs (demonstrations, for instance); returns rows for the table at the start.

        Args:
            checkpoint: what ``start`` will resume from; None: a new run.
        """

    def start(self, checkpoint: Path | None) -> Loaded | None:
        """Start what computes, and load a checkpoint; returns what it brought."""

    def close(self) -> None:
        """End what ``start`` started. Safe to call twice, and without ``start``."""

    @property
    def done(self) -> str | None:
        """Why the run is complete; None while it is not."""

    @property
    def state(self) -> tuple[int, int]:
        """Iterations and updates done, with the updates of an iteration under way."""

    def run_iteration(self, should_stop: ShouldStop) -> tuple[Row, dict[str, float]] | None:
        """One iteration, or the rest of one; returns its metrics and this rank's clock readings.

        Args:
            should_stop: asked after every update. If true, the iteration is left and None is returned; the
                next call, also after a checkpoint, completes it.
        """

    def problem(self) -> str | None:
        """Why this rank cannot continue, in words; None while it can. Then all ranks save and leave."""

    def position(self) -> Position:
        """How far the run has come, for the console."""

    def status(self, row: Row, timings: Mapping[str, float]) -> str:
        """The most telling numbers of an iteration, for the console."""

    def save(self, writer: CheckpointWriter, tracker_id: str | None) -> None:
        """Begin a checkpoint of the state (a collective call)."""

    def simulators(self) -> AbstractContextManager[WorkerPool]:
        """Workers on which held-out episodes can be played, between iterations."""

    def counters(self) -> dict[str, Any]:
        """What finished.json says of the run: iterations, env_steps, updates, and what else there is."""

    def plot(self, folder: RunFolder, evaluation: Mapping[str, Any]) -> Path:
        """Draw the curve of the whole run; returns the file."""
