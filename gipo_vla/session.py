"""One process of a run from its first iteration to its last: what is written, when, and how it ends.

Everything here happens between iterations (or, when asked to stop, between updates) and changes no number
of the run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from gipo_envs import gl
from gipo_envs.errors import UserError
from gipo_vla import config
from gipo_vla.checkpoint import folder as folders
from gipo_vla.checkpoint import run_state
from gipo_vla.checkpoint.resume import launch_record
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.checkpoint.writer import CheckpointWriter
from gipo_vla.cli import RunStoppedError
from gipo_vla.config import Config
from gipo_vla.distributed import group
from gipo_vla.distributed.signals import StopRequest
from gipo_vla.evaluation import before_and_after, summary, video
from gipo_vla.evaluation.episodes import EpisodeResult, play
from gipo_vla.pipeline import Pipeline
from gipo_vla.reporting import write_run_report
from gipo_vla.rollout.episodes import EpisodePlan, Role, evaluation_plans, integer_seed
from gipo_vla.rollout.faults import FaultWindow
from gipo_vla.run.measured import Measured, MeasuredMemory, mean_after, measure_memory
from gipo_vla.run.plan import RunPlan
from gipo_vla.telemetry import plots, tracker
from gipo_vla.telemetry.console import TrainingProgress, console
from gipo_vla.telemetry.graphs import GraphFiles
from gipo_vla.telemetry.metrics import JsonLines, read_json_lines


class Reason(IntEnum):
    """Why a session ends before its last iteration. Ranks agree on the greatest that any of them has."""

    NONE = 0
    ASKED = 1
    FAULTS = 2


class Session:
    """Runs a pipeline and keeps its folder. Use as a context.

    Args:
        plan: what was predicted; what was measured is put beside it at the end.
        resume_from: checkpoint to continue; None: a new run.
    """

    def __init__(
        self,
        settings: Config,
        folder: RunFolder,
        pipeline: Pipeline,
        plan: RunPlan,
        resume_from: Path | None = None,
    ) -> None:
        self.settings, self.folder, self.pipeline, self.plan = settings, folder, pipeline, plan
        self.first = group.rank() == 0
        self.began = time.monotonic()
        self.stop = StopRequest()
        self.graphs = GraphFiles(folder.graphs, settings.iterations)
        self.reason = Reason.NONE
        self.tracker: tracker.Tracker = tracker.NoTracker()
        self.writer = _writer(settings, folder, pipeline.device)
        self._saved: tuple[int, int] | None = None
        """Iterations and updates of the state that the newest checkpoint holds."""
        tracker_id = None
        if resume_from is not None:
            tracker_id = self._go_on_from(resume_from)
        rollout = settings.rollout
        self.faults = FaultWindow(
            rollout.max_worker_faults, rollout.worker_fault_window, pipeline.pool.faults
        )
        if self.first:
            self._open_files(tracker_id)

    def _go_on_from(self, checkpoint: Path) -> str | None:
        """Load a checkpoint; returns the tracker's run id."""
        loaded = run_state.load(checkpoint, self.pipeline)
        self.writer.newest = checkpoint.name
        if not loaded.changes:
            self._saved = self._state
        for change in loaded.changes:
            self._say(change)
        return loaded.values["tracker_id"]

    def _open_files(self, tracker_id: str | None) -> None:
        settings, folder, done = self.settings, self.folder, self.pipeline.iteration
        folder.finished.unlink(missing_ok=True)
        folder.write_json(folder.launch, launch_record())  # first: a restart goes by it
        folder.write_text(folder.config, config.to_yaml(settings))
        self.metrics = JsonLines(folder.metrics, done)
        self.timings = JsonLines(folder.timings, done)
        self.evaluations = JsonLines(folder.evaluations, done)
        self.tracker = tracker.start(settings.telemetry, folder.path, config.to_dict(settings), tracker_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None or group.world_size() == 1:  # else the others may be elsewhere
            self.writer.wait()
        if self.first:
            for lines in self._lines():
                lines.close()

    def _lines(self) -> tuple[JsonLines, JsonLines, JsonLines]:
        return self.metrics, self.timings, self.evaluations

    def _say(self, line: str) -> None:
        if self.first:
            console.print(line, soft_wrap=True)

    # ------------------------------------------------------------------------------------------ iterations

    def run(self) -> bool:
        """Iterations until the run's last, ``stop_after`` or a request to stop; whether it was the last.

        Raises:
            RunStoppedError: too many simulator workers failed; there is a checkpoint.
        """
        settings, pipeline = self.settings, self.pipeline
        if pipeline.iteration == 0 and not pipeline.updates_done:
            self._play_before()
        last = min(settings.iterations, settings.stop_after or settings.iterations)
        log_every = settings.telemetry.log_every
        with (
            self.stop,
            TrainingProgress(settings.iterations, pipeline.iteration, log_every, not self.first) as progress,
        ):
            while pipeline.iteration < last:
                env_steps_before = pipeline.env_steps
                done = pipeline.run_iteration(self._should_stop)
                if done is None:
                    return self._leave()
                self._write_down(*done, progress)
                self.faults.end_iteration(pipeline.pool.faults)
                every = settings.eval.every_env_steps
                if every and env_steps_before // every < pipeline.env_steps // every:
                    self._evaluate_under_way()
                every = settings.checkpoint.every_iterations
                if every and pipeline.iteration % every == 0 and pipeline.iteration < last:
                    self.save()
            if pipeline.iteration < settings.iterations:
                return self._leave()
        return True

    def _should_stop(self) -> bool:
        """Asked between updates; a collective call, so that all ranks stop at the same one."""
        self.writer.poll()
        pool, own = self.pipeline.pool, Reason.NONE
        if pool.given_up or self.faults.exceeded(pool.faults):
            own = Reason.FAULTS
        elif self.stop.asked:
            own = Reason.ASKED
        self.reason = Reason(group.largest(own, self.pipeline.device))
        return self.reason != Reason.NONE

    def _write_down(self, row: dict[str, Any], timings: dict[str, float], progress: TrainingProgress) -> None:
        if not self.first:
            return
        iteration = self.pipeline.iteration
        self.graphs.after(iteration, self.pipeline.credit.snapshot)
        if line := self.pipeline.credit.notice():
            self._say(line)
        self.metrics.write(row)
        self.timings.write({"iteration": iteration, **timings})
        progress.update(row, timings)
        if iteration % self.settings.telemetry.log_every == 0:
            self.tracker.log(row, iteration)

    def _leave(self) -> bool:
        """Save, and say how to go on; returns False for ``run``."""
        self.save()
        self.writer.wait()
        where = f"stopped in iteration {self.pipeline.iteration + 1} of {self.settings.iterations}"
        if self.writer.failed:
            where += f", which could not be saved (the last checkpoint is {self.writer.newest or 'none'})"
        how = f"go on with resume={self.folder.path}"
        if self.reason == Reason.FAULTS:
            raise RunStoppedError(f"{self._faults_in_words()}; {where}; {how}")
        if self.writer.failed:
            raise RunStoppedError(f"{where}; {how}")
        self._say(f"{where}; {how}")
        return False

    def _faults_in_words(self) -> str:
        """All ranks' faults; a collective call."""
        pool, limit = self.pipeline.pool, self.faults
        told = group.gather((limit.count(pool.faults), list(pool.given_up.values())))
        lines = [line for _, lines in told for line in lines]
        lines.append(
            f"{max(count for count, _ in told)} simulator workers of one rank died or hung within "
            f"{limit.iterations} iterations (rollout.max_worker_faults is {limit.limit})"
        )
        return "; ".join(lines)

    # ---------------------------------------------------------------------------------------- checkpoints

    @property
    def _state(self) -> tuple[int, int]:
        return self.pipeline.iteration, self.pipeline.learner.attempted

    def save(self) -> None:
        """Begin a checkpoint, unless there is one of this very state; on a full disk warn and go on."""
        self.pipeline.actor.finish()
        if self._saved == self._state and not self.writer.failed:
            return
        if self.first:
            for lines in self._lines():
                lines.sync()
        run_state.begin(self.writer, self.pipeline, {"tracker_id": self.tracker.id})
        self._saved = self._state

    # ------------------------------------------------------------------------------------------ evaluation

    def _play_before(self) -> None:
        """Keep some episodes of the policy as it starts, for the video at the end."""
        settings, pipeline = self.settings.eval, self.pipeline
        if not (self.first and settings.video):
            return
        plans = before_and_after.chosen_plans(
            pipeline.plans.spec, settings.video_episodes, settings.episodes_per_task
        )
        results = self._play_here(plans, settings.mode == "greedy")
        before_and_after.save(self.folder.videos / before_and_after.BEFORE_FILE, results)

    def _play(self, episodes_per_task: int, greedy: bool) -> list[EpisodeResult]:
        """Held-out episodes, shared out over ranks; every rank gets all results."""
        pipeline = self.pipeline
        pipeline.actor.finish()
        plans = evaluation_plans(pipeline.plans.spec, episodes_per_task)
        own = plans[pipeline.rank :: pipeline.world]
        results = self._play_here(own, greedy) if own else []
        gathered = [result for part in group.gather(results) for result in part]
        return sorted(gathered, key=lambda result: (result.plan.task, result.plan.initial_state))

    def _play_here(self, plans: Sequence[EpisodePlan], greedy: bool) -> list[EpisodeResult]:
        """Episodes by this rank's workers."""
        pipeline = self.pipeline
        generator = torch.Generator(pipeline.device)
        generator.manual_seed(integer_seed(self.settings.seed, Role.EVALUATION, pipeline.rank))
        temperature = self.settings.rollout.temperature
        return play(pipeline.policy, pipeline.pool, plans, pipeline.device, temperature, greedy, generator)

    def _evaluate_under_way(self) -> None:
        settings = self.settings.eval
        results = self._play(settings.during_training_episodes_per_task, settings.mode == "greedy")
        if not self.first:
            return
        row = {
            "iteration": self.pipeline.iteration,
            "env_steps": self.pipeline.env_steps,
            "mode": settings.mode,
            **summary.rates(results),
        }
        self.evaluations.write(row)
        self.tracker.log(
            {f"evaluation/{name}": row[name] for name in ("success_once", "mean_return")},
            self.pipeline.iteration,
        )

    # ------------------------------------------------------------------------------------------------- end

    def finish(self) -> None:
        """After the last iteration: checkpoint, evaluation, plots, video, and finished.json."""
        settings, folder = self.settings, self.folder
        memory = measure_memory(self.pipeline.device, self.pipeline.pool.process_ids)
        self.save()
        self.writer.wait()  # what is on disk survives whatever happens to the evaluation
        results = {
            mode: self._play(settings.eval.episodes_per_task, mode == "greedy")
            for mode in ("greedy", "sampled")
        }
        if not self.first:
            return
        spec = self.pipeline.plans.spec
        evaluation = summary.evaluation_json(spec, settings.eval.mode, results)
        folder.write_json(folder.evaluation, evaluation)
        console.print(summary.table(evaluation))
        tasks = ", ".join(spec.tasks[:3]) + (" ..." if len(spec.tasks) > 3 else "")
        plots.learning_curve(
            folder.learning_curve,
            f"{settings.experiment}: {tasks}, {settings.objective.name}, seed {settings.seed}",
            read_json_lines(folder.metrics),
            read_json_lines(folder.evaluations),
            evaluation | {"env_steps": self.pipeline.env_steps},
        )
        made = ["evaluation.json", "learning_curve.png"]
        if settings.eval.video and self._write_video(results[settings.eval.mode]):
            made.append("videos/")
        if settings.telemetry.report:
            write_run_report(folder.path)
            made.append("report.html")
        if not self.writer.failed:
            made.append("checkpoints/")
        self.tracker.finish({f"evaluation/{k}": v for k, v in evaluation.items() if isinstance(v, float)})
        seconds = time.monotonic() - self.began
        measured = self._measured(memory)
        console.print(self.plan.compare(measured))
        folder.write_json(
            folder.finished,
            {
                "iterations": self.pipeline.iteration,
                "env_steps": self.pipeline.env_steps,
                "updates": self.pipeline.learner.version,
                "session_seconds": round(seconds, 1),
                "checkpoint": self.writer.newest,
                "config_digest": config.digest(settings),
                "plan": self.plan.record(measured),
            },
        )
        console.print(
            f"success once {evaluation['success_once']:.2f} ({settings.eval.mode}, {evaluation['episodes']} "
            f"held-out initial states) after {seconds:.0f} s; {', '.join(made[:-1])} and {made[-1]} are in "
            f"{folder.path}",
            soft_wrap=True,
        )

    def _measured(self, memory: MeasuredMemory) -> Measured:
        """What the run measured of its plan, all sessions together but for the memory."""
        rows, timings = read_json_lines(self.folder.metrics), read_json_lines(self.folder.timings)
        full = self.plan.lag.settled_after if self.plan.lag else 0
        return Measured(
            env_steps=self.pipeline.env_steps,
            updates=self.pipeline.learner.version,
            mean_lag_iterations=mean_after(rows, "staleness/lag_iterations_mean", full),
            mean_lag_updates=mean_after(rows, "staleness/lag_mean", full),
            process_bytes=memory.process_bytes,
            worker_bytes=memory.worker_bytes,
            device_bytes=memory.device_bytes,
            training_seconds=round(sum(row["seconds"] for row in timings), 1),
        )

    def _write_video(self, results: Sequence[EpisodeResult]) -> bool:
        """Videos of held-out states (by rank 0's workers), also beside the policy as it started; without
        OpenGL the reason instead."""
        try:
            gl.choose()
        except UserError as error:
            console.print(f"no video: {error}")
            return False
        pool, folder = self.pipeline.pool, self.folder.videos
        kept = folder / before_and_after.BEFORE_FILE
        with pool.borrowed(lambda plan: plan):
            projector = video.Projector(pool)
            video.write(folder / "evaluation.mp4", projector, results[: self.settings.eval.video_episodes])
            if kept.exists():  # not if the run began without videos
                before_and_after.write(folder, projector, before_and_after.load(kept), results)
        return True


def _writer(settings: Config, folder: RunFolder, device: torch.device) -> CheckpointWriter:
    of = settings.checkpoint
    milestone = of.keep_every * of.every_iterations if of.keep_every and of.every_iterations else None
    return CheckpointWriter(folder.checkpoints, device, of.keep, milestone)


def newest_checkpoint(folder: RunFolder) -> Path | None:
    """The checkpoint that every rank continues from, None if none was ever completed. Damaged ones are named
    and set aside.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    problem, chosen = None, None
    if group.rank() == 0 and folder.has_checkpoint():
        try:
            chosen, damaged = folders.newest_valid(folder.checkpoints)
            for line in damaged:
                console.print(f"warning: passed over a damaged checkpoint: {line}", soft_wrap=True)
            folders.set_aside_newer(folder.checkpoints, chosen.name)
        except UserError as error:
            problem = str(error)
    problem, chosen = group.from_first((problem, chosen))
    if problem is not None:
        raise UserError(problem)
    return chosen
