"""One process of a cloning run: what is written, when, and how it ends.

The run folder is a training run's (``gipo_vla.checkpoint.run_folder``), with demonstrations/ and
loss_curve.png. An iteration is ``sft.steps_per_iteration`` updates and a look at the held-out demonstrations.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from gipo_envs import EnvironmentSpec, gl
from gipo_envs.errors import UserError
from gipo_vla import config
from gipo_vla.checkpoint.policy_files import (
    POLICY_FILE,
    STATISTICS_FILE,
    load_policy,
    policy_tensors,
    statistics_of,
)
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.checkpoint.run_state import tensors_writer, text_writer
from gipo_vla.checkpoint.writer import CheckpointWriter, Content, Write
from gipo_vla.distributed import group
from gipo_vla.distributed.signals import StopRequest
from gipo_vla.evaluation import summary, video
from gipo_vla.evaluation.episodes import EpisodeResult, play
from gipo_vla.imitation.cloning import Cloner
from gipo_vla.imitation.demonstrations import Demonstrations
from gipo_vla.imitation.examples import BatchOrder, Examples
from gipo_vla.imitation.plots import loss_curve
from gipo_vla.imitation.settings import SftConfig
from gipo_vla.policies.base import Policy
from gipo_vla.policies.normalization import moments
from gipo_vla.rollout.episodes import Role, evaluation_plans, integer_seed
from gipo_vla.rollout.pool import WorkerPool
from gipo_vla.telemetry import tracker
from gipo_vla.telemetry.console import console
from gipo_vla.telemetry.metrics import JsonLines, mean_of, read_json_lines

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "run.json"


def has_settled(losses: list[float], after: int | None, tolerance: float) -> bool:
    """Whether the last ``after`` held-out losses have not fallen below the least before them by more than
    ``tolerance`` of it."""
    if after is None or len(losses) <= after:
        return False
    return min(losses[-after:]) > (1 - tolerance) * min(losses[:-after])


class CloningSession:
    """Clones a policy and keeps the run's folder.

    Args:
        policy: with initial weights, on ``device``.
        resume_from: checkpoint to continue; None: a new run.
    """

    def __init__(
        self,
        settings: SftConfig,
        folder: RunFolder,
        spec: EnvironmentSpec,
        policy: Policy,
        demonstrations: Demonstrations,
        device: torch.device,
        resume_from: Path | None = None,
    ) -> None:
        self.settings, self.folder, self.spec, self.device = settings, folder, spec, device
        self.policy, self.demonstrations = policy, demonstrations
        self.first = group.rank() == 0
        self.began = time.monotonic()
        self.examples = Examples(demonstrations, policy.chunk)
        training, held = self.examples.split(settings.sft.validation_share, settings.seed)
        self.order = BatchOrder(training, settings.sft.batch_size, settings.seed)
        size = settings.sft.micro_batch_size
        self.held = [held[start : start + size] for start in range(0, len(held), size)]
        if resume_from is None:
            self._fit_normalizer(training)
        self.cloner = Cloner(policy, settings.learner, settings.sft, device)
        self.writer = CheckpointWriter(folder.checkpoints, device, settings.checkpoint.keep)
        self.tracker: tracker.Tracker = tracker.NoTracker()
        self._tracker_id: str | None = None
        self.iteration = 0
        self.held_losses: list[float] = []
        """Of every iteration so far."""
        if resume_from is not None:
            self._go_on_from(resume_from)

    def _fit_normalizer(self, training: NDArray[np.int64]) -> None:
        """Take the statistics of the policy's inputs, where it has none yet, from the demonstrations."""
        normalizer = self.policy.normalizer
        if normalizer is None or normalizer.count > 0:
            return
        rows = self.examples.row[training]
        observed = self.demonstrations.observations
        states = normalizer.rows({name: observed[name][rows] for name in normalizer.inputs})
        normalizer.update(*(part.to(self.device) for part in moments(torch.from_numpy(states))))

    # ------------------------------------------------------------------------------------------ iterations

    @property
    def done(self) -> str | None:
        """Why no further update is to be made; None while some are."""
        sft = self.settings.sft
        if self.cloner.attempted >= sft.steps:
            return f"all {sft.steps} updates are made"
        if has_settled(self.held_losses, sft.settled_after, sft.settled_tolerance):
            return f"the held-out loss has not fallen for {sft.settled_after} iterations"
        return None

    def run(self) -> bool:
        """Iterations until the run is done or asked to stop; whether it is done."""
        if not self.first:
            return self._iterate(None, None)
        settings, folder = self.settings, self.folder
        folder.finished.unlink(missing_ok=True)
        folder.write_text(folder.config, config.to_yaml(settings))
        metrics = JsonLines(folder.metrics, self.iteration)
        timings = JsonLines(folder.timings, self.iteration)
        self.tracker = tracker.start(
            settings.telemetry, folder.path, config.to_dict(settings), self._tracker_id
        )
        try:
            return self._iterate(metrics, timings)
        finally:
            metrics.close()
            timings.close()

    def _iterate(self, metrics: JsonLines | None, timings: JsonLines | None) -> bool:
        every = self.settings.checkpoint.every_iterations
        with StopRequest() as stop:
            while self.done is None:
                began = time.monotonic()
                row = self._iteration()
                seconds = time.monotonic() - began
                if metrics is not None and timings is not None:
                    metrics.write(row)
                    timings.write({"iteration": self.iteration, "seconds": seconds})
                    self._show(row, seconds)
                if group.largest(int(stop.asked), self.device):
                    self.save()
                    self._say(f"stopped after {row['updates']} updates; go on with resume={self.folder.path}")
                    return False
                if every and self.iteration % every == 0 and self.done is None:
                    self.save()
        return True

    def _iteration(self) -> dict[str, Any]:
        """Some updates and a look at the held-out demonstrations; a row of metrics."""
        sft, cloner = self.settings.sft, self.cloner
        updates = []
        for _ in range(min(sft.steps_per_iteration, sft.steps - cloner.attempted)):
            batch = self.examples.batch(self.order.at(cloner.attempted))
            updates.append(cloner.update(batch))
        self.iteration += 1
        row = {
            "iteration": self.iteration,
            "env_steps": self.demonstrations.env_steps,
            "updates": cloner.attempted - cloner.skipped,
            "epochs": cloner.attempted * sft.batch_size / len(self.order.examples),
            "learner/skipped_total": cloner.skipped,
        } | mean_of(updates)
        if self.held:
            row |= cloner.validate([self.examples.batch(part) for part in self.held])
            self.held_losses.append(row["loss/validation"])
        return row

    def _show(self, row: Mapping[str, Any], seconds: float) -> None:
        every = self.settings.telemetry.log_every
        if self.iteration % every == 0:
            self.tracker.log(row, self.iteration)
        if self.iteration % every == 0 or self.iteration == 1 or self.done is not None:
            held = f", held out {row['loss/validation']:.3f}" if "loss/validation" in row else ""
            accuracy = row.get("accuracy/validation", row["accuracy/train"])
            self._say(
                f"{row['updates']}/{self.settings.sft.steps} updates  loss {row['loss/train']:.3f}{held}  "
                f"tokens right {accuracy:.2f}  {row['epochs']:.1f} epochs  {seconds:.1f} s"
            )

    def _say(self, line: str) -> None:
        if self.first:
            console.print(line, soft_wrap=True)

    # --------------------------------------------------------------------------------------------- run state

    def save(self) -> Path | None:
        """Write a checkpoint (a collective call); None if it could not be written."""
        optimizer = self.cloner.optimizer_tensors()
        files: dict[str, Write] = {}
        size = 0
        if self.first:
            assert isinstance(self.policy, nn.Module)
            tensors = policy_tensors(self.policy)
            size = sum(tensor.nbytes for own in (tensors, optimizer) for tensor in own.values())
            files = {
                "config.yaml": text_writer(config.to_yaml(self.settings)),
                STATE_FILE: text_writer(json.dumps(self._state(), indent=1)),
                POLICY_FILE: tensors_writer(tensors),
                OPTIMIZER_FILE: tensors_writer(optimizer),
            }
            if statistics := statistics_of(self.policy):
                files[STATISTICS_FILE] = text_writer(json.dumps(statistics, indent=1))
        self.writer.begin(self.iteration, self.cloner.attempted, Content(files, size), background=False)
        return None if self.writer.failed else self.folder.checkpoints / str(self.writer.newest)

    def _state(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "env_steps": self.demonstrations.env_steps,
            "held_losses": self.held_losses,
            "world_size": group.world_size(),
            "learner": self.cloner.counters(),
            "tracker_id": self.tracker.id,
        }

    def _go_on_from(self, checkpoint: Path) -> None:
        state = json.loads((checkpoint / STATE_FILE).read_text())
        assert isinstance(self.policy, nn.Module)
        load_policy(self.policy, checkpoint)
        self.cloner.load(load_file(checkpoint / OPTIMIZER_FILE), state["learner"])
        self.iteration, self.held_losses = state["iteration"], state["held_losses"]
        self._tracker_id = state["tracker_id"]

    # ------------------------------------------------------------------------------------------------- end

    def finish(self) -> None:
        """After the last update: checkpoint, evaluation in both modes, plot, video, and finished.json."""
        reason = self.done
        checkpoint = self.save()
        results = self._evaluate()
        if not self.first:
            return
        settings, folder = self.settings, self.folder
        evaluation = summary.evaluation_json(self.spec, settings.eval.mode, results)
        folder.write_json(folder.evaluation, evaluation)
        console.print(summary.table(evaluation))
        loss_curve(folder.path / "loss_curve.png", settings.experiment, read_json_lines(folder.metrics))
        self.tracker.finish({f"evaluation/{k}": v for k, v in evaluation.items() if isinstance(v, float)})
        seconds = time.monotonic() - self.began
        folder.write_json(
            folder.finished,
            {
                "iterations": self.iteration,
                "env_steps": self.demonstrations.env_steps,
                "updates": self.cloner.attempted - self.cloner.skipped,
                "reason": reason,
                "session_seconds": round(seconds, 1),
                "checkpoint": checkpoint.name if checkpoint else None,
                "config_digest": config.digest(settings),
            },
        )
        self._say(
            f"{reason}; success once {evaluation['success_once']:.2f} ({settings.eval.mode}, "
            f"{evaluation['episodes']} held-out initial states) after {seconds:.0f} s; train from it with "
            f"init_from={folder.path}"
        )

    def _evaluate(self) -> dict[str, list[EpisodeResult]]:
        """Held-out episodes in both modes, shared out over ranks; every rank gets all results. Rank 0 films
        some of the headline's."""
        settings, rollout = self.settings, self.settings.rollout
        plans = evaluation_plans(self.spec, settings.eval.episodes_per_task)
        own = plans[group.rank() :: group.world_size()]
        results = {}
        with WorkerPool(
            settings.env,
            self.spec,
            rollout.workers,
            rollout.envs_per_worker,
            self.policy.chunk,
            lambda plan: plan,
            rollout.worker_timeout_s,
        ) as pool:
            pool.begin([plans[0]] * pool.envs)
            for mode in ("greedy", "sampled"):
                generator = torch.Generator(self.device)
                generator.manual_seed(integer_seed(settings.seed, Role.EVALUATION, group.rank()))
                played = play(
                    self.policy, pool, own, self.device, rollout.temperature, mode == "greedy", generator
                )
                gathered = [result for part in group.gather(played) for result in part]
                results[mode] = sorted(gathered, key=lambda r: (r.plan.task, r.plan.initial_state))
            if self.first and settings.eval.video:
                self._film(pool, results[settings.eval.mode])
        return results

    def _film(self, pool: WorkerPool, results: list[EpisodeResult]) -> None:
        """A video of the first held-out states; without OpenGL the reason instead."""
        try:
            gl.choose()
        except UserError as error:
            console.print(f"no video: {error}")
            return
        chosen = results[: self.settings.eval.video_episodes]
        video.write(self.folder.videos / "evaluation.mp4", video.Projector(pool), chosen)
