"""Reinforcement as the lifecycle drives it: a pipeline, its workers' faults, and the table at the start."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from gipo_envs import EnvironmentSpec, gl, needs_opengl
from gipo_vla.assembly import build_policy
from gipo_vla.checkpoint import run_state
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.checkpoint.run_state import Loaded
from gipo_vla.checkpoint.writer import CheckpointWriter
from gipo_vla.distributed import group
from gipo_vla.imitation import sources
from gipo_vla.imitation.demonstrations import Demonstrations
from gipo_vla.pipeline import Pipeline
from gipo_vla.rollout.faults import FaultWindow
from gipo_vla.rollout.pool import WorkerPool
from gipo_vla.run.plan import RunPlan
from gipo_vla.run.trainer import Row, ShouldStop, trainable_parameters
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.console import Position, number, say
from gipo_vla.telemetry.graphs import GraphFiles
from gipo_vla.telemetry.metrics import read_json_lines


class Reinforcement:
    """A ``Trainer`` that reinforces a policy by a ``Pipeline``."""

    def __init__(
        self,
        settings: TrainingSettings,
        spec: EnvironmentSpec,
        device: torch.device,
        stored: Path | None,
        plan: RunPlan,
    ) -> None:
        assert plan.collection is not None
        self.settings, self.device, self.collection = settings, device, plan.collection
        self.policy = build_policy(settings, spec, device, stored, reinforced=True)
        self.spec, self._seen = self.collection.spec, spec
        self.demonstrations: Demonstrations | None = None
        self._opened = ExitStack()

    def prepare(self, folder: RunFolder, checkpoint: Path | None) -> dict[str, str]:
        self.folder = folder
        self.settings = dataclasses.replace(self.settings, run_dir=str(folder.path))
        if self.settings.demonstrations is not None:
            # Of what the policy sees, which is less than the credit's workers observe.
            self.demonstrations = sources.obtain(self.settings, self._seen, folder.path)
        return self._table()

    def start(self, checkpoint: Path | None) -> Loaded | None:
        settings, rollout = self.settings, self.settings.rollout
        self.pipeline = Pipeline(settings, self.policy, self.collection, self.device, self.demonstrations)
        self._opened.callback(self.pipeline.close)
        self.graphs = GraphFiles(self.folder.graphs, settings.iterations)
        loaded = None if checkpoint is None else run_state.load(checkpoint, self.pipeline)
        faults = self.pipeline.pool.faults
        self.faults = FaultWindow(rollout.max_worker_faults, rollout.worker_fault_window, faults)
        return loaded

    def close(self) -> None:
        self._opened.close()

    @property
    def worker_processes(self) -> Sequence[int]:
        return self.pipeline.pool.process_ids

    @property
    def done(self) -> str | None:
        iterations = self.settings.iterations
        return f"all {iterations} iterations are done" if self.pipeline.iteration >= iterations else None

    @property
    def state(self) -> tuple[int, int]:
        return self.pipeline.iteration, self.pipeline.learner.attempted

    def run_iteration(self, should_stop: ShouldStop) -> tuple[Row, dict[str, float]] | None:
        pipeline = self.pipeline
        done = pipeline.run_iteration(should_stop)
        if done is None:
            return None
        self.faults.end_iteration(pipeline.pool.faults)
        if group.rank() == 0:
            self.graphs.after(pipeline.iteration, pipeline.credit.snapshot)
            if line := pipeline.credit.notice():
                say(line)
        return done

    def problem(self) -> str | None:
        pool, limit = self.pipeline.pool, self.faults
        if not pool.given_up and not limit.exceeded(pool.faults):
            return None
        count = (
            f"{limit.count(pool.faults)} simulator workers of one rank died or hung within "
            f"{limit.iterations} iterations (rollout.max_worker_faults is {limit.limit})"
        )
        return "; ".join([*pool.given_up.values(), count])

    def position(self) -> Position:
        done, total = self.pipeline.iteration, self.settings.iterations
        return Position(done, total, f"iteration {done}/{total}")

    def status(self, row: Row, timings: Mapping[str, float]) -> str:
        return (
            f"success {number(row.get('success_once_recent'), 2)}  env steps {row['env_steps']:,}"
            f" ({timings['env_steps_per_second']:,.0f}/s)"
            f"  lag {number(row.get('staleness/lag_iterations_mean'), 1)} it"
            f"  P95|log rho| {number(row.get('staleness/p95_abs_log_ratio'), 2)}"
        )

    def save(self, writer: CheckpointWriter, tracker_id: str | None) -> None:
        self.pipeline.actor.finish()
        run_state.begin(writer, self.pipeline, {"tracker_id": tracker_id})

    @contextmanager
    def simulators(self) -> Iterator[WorkerPool]:
        self.pipeline.actor.finish()
        yield self.pipeline.pool

    def counters(self) -> dict[str, Any]:
        pipeline = self.pipeline
        return {
            "iterations": pipeline.iteration,
            "env_steps": pipeline.env_steps,
            "updates": pipeline.learner.version,
        }

    def plot(self, folder: RunFolder, evaluation: Mapping[str, Any]) -> Path:
        from gipo_vla.telemetry import plots  # matplotlib, at the end only

        settings, tasks = self.settings, ", ".join(self.spec.tasks[:3])
        more = " ..." if len(self.spec.tasks) > 3 else ""
        plots.learning_curve(
            folder.learning_curve,
            f"{settings.experiment}: {tasks}{more}, {settings.objective.name}, seed {settings.seed}",
            read_json_lines(folder.metrics),
            read_json_lines(folder.evaluations),
            dict(evaluation) | {"env_steps": self.pipeline.env_steps},
        )
        return folder.learning_curve

    def _table(self) -> dict[str, str]:
        """What is active; the plan adds its own rows."""
        settings, policy, spec = self.settings, self.policy, self.spec
        rollout, learner = settings.rollout, settings.learner
        tasks = spec.tasks[0] if len(spec.tasks) == 1 else f"{len(spec.tasks)} tasks"
        return {
            "environment": f"{settings.env.family} {tasks}, {settings.env.reward} reward, "
            f"{spec.step_limit} env steps, actions held {spec.action_repeat}",
            "instruction": spec.instructions[0] + (" ..." if len(spec.tasks) > 1 else ""),
            "policy": f"{settings.policy.name}, {trainable_parameters(policy):,} trainable parameters, chunk "
            f"{policy.chunk} x {policy.action_dims} tokens of {policy.bins}",
            "objective": _values(settings.objective),
            "regularizers": _values(settings.regularizers) or "none",
            "credit": _values(settings.credit),
            "rollout": f"{group.world_size()} rank(s) x {rollout.workers} workers x "
            f"{rollout.envs_per_worker} environments, {self.collection.steps} vector steps an iteration, "
            f"collect {rollout.collect}",
            "learner": f"DeepSpeed on {self.device}, {learner.updates} updates an iteration of "
            f"{learner.batch_segments} segments x {settings.replay.segment_length}, learning rates "
            f"{learner.policy_learning_rate:g} / {learner.value_learning_rate:g}",
            **self._told_demonstrations(),
            **({"rendering": "{}: {}".format(*gl.choose())} if needs_opengl(settings.env) else {}),
        }

    def _told_demonstrations(self) -> dict[str, str]:
        found, replay = self.demonstrations, self.settings.replay
        if found is None:
            return {}
        return {
            "demonstrations": f"{len(found.records)} ({self.settings.demonstrations.name}); "
            f"{self.settings.demonstrated} decisions beside every batch, weight "
            f"{replay.demonstration_coefficient:g}"
        }


def _values(section: Any) -> str:
    """Settings as words; those that are off are left out."""
    values = dataclasses.asdict(section)
    name = values.pop("name", "")
    shown = [f"{key} {value}" for key, value in values.items() if value not in (None, 0.0)]
    if not name:  # regularizers: estimators say nothing without their coefficients
        shown = [text for text in shown if "coefficient" in text]
    return " ".join([name, ", ".join(shown)]).strip()
