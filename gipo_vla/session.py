"""One process of a run from its first iteration to its last: what is written, when, and how it ends.

Everything here happens between iterations (or, when asked to stop, between updates) and changes no number
of the run.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch

from gipo_envs import gl
from gipo_envs.errors import UserError
from gipo_vla import config
from gipo_vla.checkpoint import folder as folders
from gipo_vla.checkpoint import run_state
from gipo_vla.checkpoint.resume import launch_record
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.config import Config
from gipo_vla.distributed import group
from gipo_vla.distributed.signals import StopRequest
from gipo_vla.evaluation import summary, video
from gipo_vla.evaluation.episodes import EpisodeResult, play
from gipo_vla.pipeline import Pipeline
from gipo_vla.rollout.episodes import Role, evaluation_plans, integer_seed
from gipo_vla.telemetry import plots, tracker
from gipo_vla.telemetry.console import TrainingProgress, console
from gipo_vla.telemetry.metrics import JsonLines, read_json_lines


class Session:
    """Runs a pipeline and keeps its folder. Use as a context.

    Args:
        resume_from: checkpoint to continue; None: a new run.
    """

    def __init__(
        self, settings: Config, folder: RunFolder, pipeline: Pipeline, resume_from: Path | None = None
    ) -> None:
        self.settings, self.folder, self.pipeline = settings, folder, pipeline
        self.first = group.rank() == 0
        self.began = time.monotonic()
        self.tracker: tracker.Tracker = tracker.NoTracker()
        tracker_id = None
        if resume_from is not None:
            tracker_id = run_state.load(resume_from, pipeline).get("tracker_id")
        if self.first:
            done = pipeline.iteration
            folder.finished.unlink(missing_ok=True)
            folder.config.write_text(config.to_yaml(settings))
            folder.write_json(folder.launch, launch_record())
            self.metrics = JsonLines(folder.metrics, done)
            self.timings = JsonLines(folder.timings, done)
            self.evaluations = JsonLines(folder.evaluations, done)
            self.tracker = tracker.start(
                settings.telemetry, folder.path, config.to_dict(settings), tracker_id
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.first:
            for lines in (self.metrics, self.timings, self.evaluations):
                lines.close()

    # ------------------------------------------------------------------------------------------ iterations

    def run(self) -> bool:
        """Iterations until the run's last, ``stop_after`` or a request to stop; whether it was the last."""
        settings, pipeline = self.settings, self.pipeline
        last = min(settings.iterations, settings.stop_after or settings.iterations)
        log_every = settings.telemetry.log_every
        with (
            StopRequest(pipeline.device) as stop,
            TrainingProgress(settings.iterations, pipeline.iteration, log_every, not self.first) as progress,
        ):
            while pipeline.iteration < last:
                env_steps_before = pipeline.env_steps
                done = pipeline.run_iteration(stop.agreed)
                if done is None:
                    self.save()
                    self._say_how_to_go_on()
                    return False
                row, timings = done
                if self.first:
                    self.metrics.write(row)
                    self.timings.write({"iteration": pipeline.iteration, **timings})
                    progress.update(row, timings)
                    if pipeline.iteration % log_every == 0:
                        self.tracker.log(row, pipeline.iteration)
                every = settings.eval.every_env_steps
                if every and env_steps_before // every < pipeline.env_steps // every:
                    self._evaluate_under_way()
                every = settings.checkpoint.every_iterations
                if every and pipeline.iteration % every == 0 and pipeline.iteration < last:
                    self.save()
        if pipeline.iteration < settings.iterations:
            self.save()
            self._say_how_to_go_on()
            return False
        return True

    def _say_how_to_go_on(self) -> None:
        if self.first:
            console.print(
                f"stopped in iteration {self.pipeline.iteration + 1} of {self.settings.iterations}; go on with "
                f"resume={self.folder.path}",
                soft_wrap=True,
            )

    def save(self) -> Path | None:
        """Write a checkpoint; on a full disk warn, keep the last good one and go on."""
        self.pipeline.actor.finish()
        try:
            return run_state.save(self.folder.checkpoints, self.pipeline, {"tracker_id": self.tracker.id})
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if self.first:
                console.print(
                    f"warning: no room for a checkpoint in {self.folder.checkpoints}; the last good one stays "
                    "and the run goes on",
                    soft_wrap=True,
                )
            return None

    # ------------------------------------------------------------------------------------------ evaluation

    def _play(self, episodes_per_task: int, greedy: bool) -> list[EpisodeResult]:
        """Held-out episodes, shared out over ranks; every rank gets all results."""
        pipeline = self.pipeline
        pipeline.actor.finish()
        plans = evaluation_plans(pipeline.plans.spec, episodes_per_task)
        own = plans[pipeline.rank :: pipeline.world]
        generator = torch.Generator(pipeline.device)
        generator.manual_seed(integer_seed(self.settings.seed, Role.EVALUATION, pipeline.rank))
        results: list[EpisodeResult] = []
        if own:
            temperature = self.settings.rollout.temperature
            results = play(
                pipeline.policy, pipeline.pool, own, pipeline.device, temperature, greedy, generator
            )
        gathered = [result for part in group.gather(results) for result in part]
        return sorted(gathered, key=lambda result: (result.plan.task, result.plan.initial_state))

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
        checkpoint = self.save()
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
        if checkpoint is not None:
            made.append("checkpoints/")
        self.tracker.finish({f"evaluation/{k}": v for k, v in evaluation.items() if isinstance(v, float)})
        seconds = time.monotonic() - self.began
        folder.write_json(
            folder.finished,
            {
                "iterations": self.pipeline.iteration,
                "env_steps": self.pipeline.env_steps,
                "updates": self.pipeline.learner.version,
                "session_seconds": round(seconds, 1),
                "checkpoint": checkpoint.name if checkpoint else None,
                "config_digest": config.digest(settings),
            },
        )
        console.print(
            f"success once {evaluation['success_once']:.2f} ({settings.eval.mode}, {evaluation['episodes']} "
            f"held-out initial states) after {seconds:.0f} s; {', '.join(made[:-1])} and {made[-1]} are in "
            f"{folder.path}",
            soft_wrap=True,
        )

    def _write_video(self, results: Sequence[EpisodeResult]) -> bool:
        """A video of the first held-out states (by rank 0's workers); without OpenGL the reason instead."""
        try:
            gl.choose()
        except UserError as error:
            console.print(f"no video: {error}")
            return False
        pool = self.pipeline.pool
        with pool.borrowed(lambda plan: plan):
            video.write(
                self.folder.videos / "evaluation.mp4", pool, results[: self.settings.eval.video_episodes]
            )
        return True


def newest_checkpoint(folder: RunFolder) -> Path:
    """The checkpoint that every rank continues from; damaged ones are named and passed over."""
    problem, chosen = None, None
    if group.rank() == 0:
        try:
            chosen, damaged = folders.newest_valid(folder.checkpoints)
            for line in damaged:
                console.print(f"warning: passed over a damaged checkpoint: {line}", soft_wrap=True)
        except UserError as error:
            problem = str(error)
    problem, chosen = group.from_first((problem, chosen))
    if problem is not None:
        raise UserError(problem)
    return chosen
