"""Cloning as the lifecycle drives it: demonstrations, a cloner, and a look at what is held out.

An iteration is ``sft.steps_per_iteration`` updates and the loss on held-out demonstrations. The run folder is
a training run's, with demonstrations/ and loss_curve.png.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gipo_envs import EnvironmentSpec
from gipo_vla import foreign
from gipo_vla.assembly import build_policy
from gipo_vla.checkpoint import run_state, stored
from gipo_vla.checkpoint.policy_files import load_policy
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.checkpoint.run_state import OPTIMIZER_FILE, STATE_FILE, Loaded
from gipo_vla.checkpoint.writer import CheckpointWriter
from gipo_vla.distributed import group
from gipo_vla.evaluation.episodes import simulators
from gipo_vla.imitation import sources
from gipo_vla.imitation.cloning import Cloner
from gipo_vla.imitation.demonstrations import Demonstrations
from gipo_vla.imitation.examples import BatchOrder, Examples
from gipo_vla.imitation.statistics import dataset_statistics
from gipo_vla.policies.base import Policy
from gipo_vla.policies.normalization import moments
from gipo_vla.rollout.pool import WorkerPool
from gipo_vla.run.plan import RunPlan
from gipo_vla.run.trainer import Row, ShouldStop, trainable_parameters
from gipo_vla.settings.cloning import SftSettings
from gipo_vla.telemetry.console import Position
from gipo_vla.telemetry.metrics import mean_of, read_json_lines
from gipo_vla.telemetry.plots import loss_curve


def has_settled(losses: list[float], after: int | None, tolerance: float) -> bool:
    """Whether the last ``after`` held-out losses have not fallen below the least before them by more than
    ``tolerance`` of it."""
    if after is None or len(losses) <= after:
        return False
    return min(losses[-after:]) > (1 - tolerance) * min(losses[:-after])


class Cloning:
    """A ``Trainer`` that clones a policy from demonstrations."""

    policy: Policy
    demonstrations: Demonstrations

    def __init__(
        self,
        settings: SftSettings,
        spec: EnvironmentSpec,
        device: torch.device,
        stored: Path | None,
        plan: RunPlan,
    ) -> None:
        self.settings, self.spec, self.device = settings, spec, device
        if getattr(settings.policy, "checkpoint", None) is None:
            # One from nothing is quickly built: tell what does not fit before anything is recorded.
            build_policy(settings, spec, device, stored)
        self.iteration = 0
        self.updates_done: list[dict[str, float]] = []
        """Metrics of the updates of the iteration under way."""
        self.held_losses: list[float] = []
        """Held-out losses of all iterations so far."""

    def prepare(self, folder: RunFolder, checkpoint: Path | None) -> dict[str, str]:
        self.settings = settings = replace(self.settings, run_dir=str(folder.path))
        self.demonstrations = sources.obtain(settings, self.spec, folder.path)
        fresh = checkpoint is None and settings.init_from is None
        # Weights that exist were learned with statistics of their own, which came with them.
        statistics = dataset_statistics(self.demonstrations, settings.env.family) if fresh else None
        self.policy = build_policy(settings, self.spec, self.device, checkpoint, statistics)
        self.examples = Examples(self.demonstrations, self.policy.chunk)
        return self._table()

    def start(self, checkpoint: Path | None) -> Loaded | None:
        sft = self.settings.sft
        training, held = self.examples.split(sft.validation_share, self.settings.seed)
        self.order = BatchOrder(training, sft.batch_size, self.settings.seed)
        size = sft.micro_batch_size
        self.held = [held[start : start + size] for start in range(0, len(held), size)]
        if checkpoint is None:
            self._fit_normalizer(training)
        self.cloner = Cloner(self.policy, self.settings.learner, sft, self.device)
        return None if checkpoint is None else self._load(checkpoint)

    def _fit_normalizer(self, training: NDArray[np.int64]) -> None:
        """Take the statistics of the policy's inputs, where it has none yet, from the demonstrations."""
        normalizer = self.policy.normalizer
        if normalizer is None or normalizer.count > 0:
            return
        rows, observed = self.examples.row[training], self.demonstrations.observations
        states = normalizer.rows({name: observed[name][rows] for name in normalizer.inputs})
        normalizer.update(*(part.to(self.device) for part in moments(torch.from_numpy(states))))

    def close(self) -> None:
        pass

    @property
    def worker_processes(self) -> Sequence[int]:
        return ()

    @property
    def done(self) -> str | None:
        sft = self.settings.sft
        if self.updates_done:  # in the middle of an iteration
            return None
        if self.cloner.attempted >= sft.steps:
            return f"all {sft.steps} updates are made"
        if has_settled(self.held_losses, sft.settled_after, sft.settled_tolerance):
            return f"the held-out loss has not fallen for {sft.settled_after} iterations"
        return None

    @property
    def state(self) -> tuple[int, int]:
        return self.iteration, self.cloner.attempted

    def run_iteration(self, should_stop: ShouldStop) -> tuple[Row, dict[str, float]] | None:
        began = time.monotonic()
        sft, cloner = self.settings.sft, self.cloner
        while len(self.updates_done) < sft.steps_per_iteration and cloner.attempted < sft.steps:
            batch = self.examples.batch(self.order.at(cloner.attempted))
            self.updates_done.append(cloner.update(batch))
            if should_stop():
                return None
        self.iteration += 1
        row: Row = {
            "iteration": self.iteration,
            "env_steps": self.demonstrations.env_steps,
            "updates": cloner.attempted - cloner.skipped,
            "epochs": cloner.attempted * sft.batch_size / len(self.order.examples),
            "learner/skipped_total": cloner.skipped,
        } | mean_of(self.updates_done)
        self.updates_done = []
        if self.held:
            row |= cloner.validate([self.examples.batch(part) for part in self.held])
            self.held_losses.append(row["loss/validation"])
        return row, {"seconds": time.monotonic() - began}

    def problem(self) -> str | None:
        return None

    def position(self) -> Position:
        done, total = self.cloner.attempted - self.cloner.skipped, self.settings.sft.steps
        return Position(done, total, f"{done}/{total} updates")

    def status(self, row: Row, timings: Mapping[str, float]) -> str:
        held = f", held out {row['loss/validation']:.3f}" if "loss/validation" in row else ""
        accuracy = row.get("accuracy/validation", row["accuracy/train"])
        return (
            f"loss {row['loss/train']:.3f}{held}  tokens right {accuracy:.2f}  {row['epochs']:.1f} epochs  "
            f"{timings['seconds']:.1f} s"
        )

    def save(self, writer: CheckpointWriter, tracker_id: str | None) -> None:
        values = {
            "iteration": self.iteration,
            "env_steps": self.demonstrations.env_steps,
            "updates_done": self.updates_done,
            "held_losses": self.held_losses,
            "world_size": group.world_size(),
            "device": self.device.type,
            "learner": self.cloner.counters(),
            "tracker_id": tracker_id,
        }
        optimizer = self.cloner.optimizer_tensors()
        content = run_state.shared_content(self.settings, self.policy, {OPTIMIZER_FILE: optimizer}, values)
        writer.begin(*self.state, content, background=False)

    def _load(self, checkpoint: Path) -> Loaded:
        values = stored.read(checkpoint / STATE_FILE, stored.ClonedRun)
        assert isinstance(self.policy, nn.Module)
        load_policy(self.policy, checkpoint)
        optimizer = foreign.read_tensors(checkpoint / OPTIMIZER_FILE)
        stored.check_finite(checkpoint / OPTIMIZER_FILE, optimizer)
        with foreign.understood(checkpoint):
            self.cloner.load(optimizer, values["learner"])
        self.iteration, self.held_losses = values["iteration"], values["held_losses"]
        self.updates_done = values["updates_done"]
        return Loaded(values, run_state.moved_between_devices(values, self.device))

    def simulators(self) -> AbstractContextManager[WorkerPool]:
        return simulators(self.settings, self.spec, self.policy.chunk)

    def counters(self) -> dict[str, Any]:
        return {
            "iterations": self.iteration,
            "env_steps": self.demonstrations.env_steps,
            "updates": self.cloner.attempted - self.cloner.skipped,
            "reason": self.done,
        }

    def plot(self, folder: RunFolder, evaluation: Mapping[str, Any]) -> Path:
        path = folder.path / "loss_curve.png"
        loss_curve(path, self.settings.experiment, read_json_lines(folder.metrics))
        return path

    def _table(self) -> dict[str, str]:
        settings, policy, found = self.settings, self.policy, self.demonstrations
        sft, source, tasks = settings.sft, settings.demonstrations, self.spec.tasks
        tried = f", kept of {found.attempts} attempts" if found.attempts else ""
        settled = f", or until the held-out loss has not fallen for {sft.settled_after} iterations"
        return {
            "environment": f"{settings.env.family} {', '.join(tasks[:3])}{' ...' * (len(tasks) > 3)}",
            "demonstrations": f"{len(found.records)} ({source.name}){tried}; {len(self.examples):,} examples "
            f"of chunk {policy.chunk}; {sft.validation_share:.0%} of the episodes held out",
            "policy": f"{settings.policy.name}, {trainable_parameters(policy):,} trainable parameters",
            "learner": f"DeepSpeed on {self.device}, {group.world_size()} rank(s), {sft.steps} updates of "
            f"{sft.batch_size} examples{settled if sft.settled_after else ''}, learning rate "
            f"{settings.learner.policy_learning_rate:g}",
        }
