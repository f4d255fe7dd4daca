"""One process of a run from its first iteration to finished.json: what is written, when, and how it ends.

Everything here happens between iterations (or, when the run is asked to stop, between updates) and changes no
number of the run. What trains is a ``Trainer``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, Self

from gipo_envs import gl
from gipo_envs.errors import RunStoppedError, UserError
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.checkpoint.writer import CheckpointWriter
from gipo_vla.distributed import group
from gipo_vla.distributed.signals import StopRequest, launcher_is_gone
from gipo_vla.evaluation import before_and_after, summary, video
from gipo_vla.evaluation.episodes import EpisodeResult, play
from gipo_vla.rollout.episodes import EpisodePlan, evaluation_plans
from gipo_vla.rollout.pool import WorkerPool
from gipo_vla.rollout.process import WorkerLostError
from gipo_vla.run.memory import measure_memory
from gipo_vla.run.plan import Measured, RunPlan, mean_after
from gipo_vla.run.resume import launch_record
from gipo_vla.run.trainer import Row, Trainer
from gipo_vla.settings import runs
from gipo_vla.settings.schema import EvaluationSettings
from gipo_vla.telemetry import tracker
from gipo_vla.telemetry.console import RunProgress, console, say
from gipo_vla.telemetry.metrics import JsonLines, read_json_lines

WriteReport = Callable[[Path], object]
"""Writes report.html into a run folder."""


class Reason(IntEnum):
    """Why a run is left before it is complete. Ranks agree on the greatest that any of them has."""

    NONE = 0
    ASKED = 1
    ORPHANED = 2
    FAILING = 3


class Lifecycle:
    """Runs a trainer and keeps the run's folder. Use as a context.

    Args:
        trainer: prepared, not started.
        folder: locked for this process.
        checkpoint: what to resume from; None: a new run.
        write_report: called at the end where ``telemetry.report`` asks for it; None: runs of this kind have
            no report.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        plan: RunPlan,
        checkpoint: Path | None = None,
        write_report: WriteReport | None = None,
    ) -> None:
        self.trainer, self.folder, self.plan, self.write_report = trainer, folder, plan, write_report
        self.settings = trainer.settings
        self.first = group.rank() == 0
        self.began = time.monotonic()
        self.stop = StopRequest()
        self.reason = Reason.NONE
        self.tracker: tracker.Tracker = tracker.NoTracker()
        keeping = self.settings.checkpoint
        milestone = (keeping.keep_every or 0) * (keeping.every_iterations or 0)
        self.writer = CheckpointWriter(folder.checkpoints, keeping.keep, milestone or None)
        self._saved: tuple[int, int] | None = None
        """The state that the newest checkpoint holds."""
        self._lines: dict[str, JsonLines] = {}
        loaded = trainer.start(checkpoint)
        if checkpoint is not None and loaded is not None:
            self.writer.go_on_from(checkpoint.name)
            if not loaded.changes:
                self._saved = trainer.state
            for change in loaded.changes:
                say(change)
        if self.first:
            self._open_files(loaded.values["tracker_id"] if loaded else None)

    def _open_files(self, tracker_id: str | None) -> None:
        settings, folder, done = self.settings, self.folder, self.trainer.state[0]
        folder.finished.unlink(missing_ok=True)
        folder.write_json(folder.launch, launch_record())  # first: a restart goes by it
        folder.write_text(folder.config, runs.to_yaml(settings))
        self._lines = {path.stem: JsonLines(path, done) for path in (folder.metrics, folder.timings)}
        if isinstance(settings.eval, EvaluationSettings):
            self._lines["evaluations"] = JsonLines(folder.evaluations, done)
        self.tracker = tracker.start(settings.telemetry, folder.path, runs.to_dict(settings), tracker_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or group.world_size() == 1:  # else the others may be elsewhere
            self.writer.wait()
        for lines in self._lines.values():
            lines.close()

    # ------------------------------------------------------------------------------------------ iterations

    def run(self) -> None:
        """Iterate until the run is complete, ``stop_after`` is reached, or somebody asks to stop; then finish
        the run, or save it and say how to resume it. Raises RunStoppedError: the run had to stop, or stopped
        without being saved."""
        trainer, every = self.trainer, self.settings.checkpoint.every_iterations
        log_every = self.settings.telemetry.log_every
        with self.stop, RunProgress(trainer.position(), log_every, quiet=not self.first) as progress:
            self._keep_before()
            while not self._over:
                env_steps = trainer.counters()["env_steps"]
                done = trainer.run_iteration(self._should_stop)
                if done is None:
                    break
                self._write_down(*done, progress)
                self._evaluate_if_due(env_steps)
                if every and trainer.state[0] % every == 0 and not self._over:
                    self.save()
            if trainer.done is None:
                self._leave()
                return
        self._finish()

    @property
    def _over(self) -> bool:
        last = self.settings.stop_after
        return self.trainer.done is not None or (last is not None and self.trainer.state[0] >= last)

    def _should_stop(self) -> bool:
        """Asked between updates; a collective call, so that all ranks stop at the same one."""
        self.writer.poll()
        self._agree_on_reason()
        return self.reason != Reason.NONE

    def _agree_on_reason(self) -> None:
        self.reason = Reason(group.largest(self._own_reason, self.trainer.device))

    @property
    def _own_reason(self) -> Reason:
        if self.trainer.problem():
            return Reason.FAILING
        if launcher_is_gone():
            return Reason.ORPHANED
        return Reason.ASKED if self.stop.asked else Reason.NONE

    def _write_down(self, row: Row, timings: Mapping[str, float], progress: RunProgress) -> None:
        if not self.first:
            return
        trainer, iteration = self.trainer, self.trainer.state[0]
        self._lines["metrics"].write(row)
        self._lines["timings"].write({"iteration": iteration, **timings})
        last = trainer.done is not None
        progress.update(iteration, trainer.position(), trainer.status(row, timings), last)
        if iteration % self.settings.telemetry.log_every == 0:
            self.tracker.log(row, iteration)

    def _leave(self) -> None:
        """Save, and say how to resume."""
        self.save()
        self.writer.wait()
        # Again: Linux sends the signal when the launcher's main thread is gone, and makes this process an
        # orphan only when the last one is.
        self._agree_on_reason()
        where = f"stopped after {self.trainer.position().heading}"
        if self.writer.failed:
            where += f", which could not be saved (the last checkpoint is {self.writer.newest or 'none'})"
        told = f"{where}; resume it with resume={self.folder.path}"
        if self.reason == Reason.FAILING:
            problems = [problem for problem in group.gather(self.trainer.problem()) if problem]
            raise RunStoppedError("; ".join([*problems, told]))
        if self.reason == Reason.ORPHANED:
            # Not with status 0: the torchrun of the other machine would wait for the one that is gone.
            raise RunStoppedError(f"a torchrun of this run was killed, and its ranks with it: {told}")
        if self.writer.failed:
            raise RunStoppedError(told)
        say(told)

    def save(self) -> None:
        """Begin a checkpoint, unless there is one of this very state; on a full disk warn and continue."""
        if self._saved == self.trainer.state and not self.writer.failed:
            return
        for lines in self._lines.values():
            lines.sync()
        self.trainer.save(self.writer, self.tracker.id)
        self._saved = self.trainer.state

    # ------------------------------------------------------------------------------------------ evaluation

    def _play(self, pool: WorkerPool, episodes_per_task: int, mode: str) -> list[EpisodeResult]:
        """Results of all held-out episodes, shared out over ranks, on every rank (a collective call)."""
        plans = evaluation_plans(self.trainer.spec, episodes_per_task)
        results = self._play_here(pool, plans[group.rank() :: group.world_size()], mode)
        gathered = [result for part in group.gather(results) for result in part]
        return sorted(gathered, key=lambda result: (result.plan.task, result.plan.initial_state))

    def _play_here(self, pool: WorkerPool, plans: Sequence[EpisodePlan], mode: str) -> list[EpisodeResult]:
        trainer = self.trainer
        return play(trainer.settings, trainer.policy, pool, plans, trainer.device, mode)

    def _keep_before(self) -> None:
        """Keep some episodes of the policy that training starts from, for the video at the end."""
        settings, trainer = self.settings.eval, self.trainer
        if not (self.first and settings.video and isinstance(settings, EvaluationSettings)):
            return
        if trainer.state == (0, 0):
            plans = before_and_after.chosen_plans(
                trainer.spec, settings.video_episodes, settings.episodes_per_task
            )
            with trainer.simulators() as pool:
                before_and_after.save(self._before, self._play_here(pool, plans, settings.mode))

    @property
    def _before(self) -> Path:
        return self.folder.videos / before_and_after.BEFORE_FILE

    def _film(self, pool: WorkerPool, results: Sequence[EpisodeResult]) -> bool:
        """Write videos of held-out states, also beside the policy as it started where that was kept. False
        without OpenGL or a worker that draws in time; the reason is on the console."""
        shown, pairs = results[: self.settings.eval.video_episodes], self._pairs(results)
        try:
            gl.choose()
            with pool.borrowed(lambda plan: plan):
                projector = video.Projector(pool, [*shown, *(result for pair in pairs for result in pair)])
                video.write(self.folder.videos / "evaluation.mp4", projector, shown)
                before_and_after.write(self.folder.videos, projector, pairs)
        except (UserError, WorkerLostError) as error:
            say(f"no video: {error}")
            return False
        return True

    def _pairs(self, results: Sequence[EpisodeResult]) -> list[before_and_after.Pair]:
        """Episodes of the policy as it started, where they were kept, and as it is now."""
        if not self._before.exists():
            return []
        try:
            before = before_and_after.load(self._before)
        except UserError as error:
            say(f"no comparison with the policy as it started: {error}")
            return []
        return before_and_after.pairs_of(self.trainer.spec, before, results)

    def _evaluate_if_due(self, env_steps_before: int) -> None:
        """Evaluate when another ``eval.every_env_steps`` were taken."""
        settings, trainer = self.settings.eval, self.trainer
        if not isinstance(settings, EvaluationSettings) or settings.every_env_steps is None:
            return
        env_steps, every = trainer.counters()["env_steps"], settings.every_env_steps
        if env_steps_before // every == env_steps // every:
            return
        with trainer.simulators() as pool:
            results = self._play(pool, settings.during_training_episodes_per_task, settings.mode)
        if not self.first:
            return
        iteration = trainer.state[0]
        row = {"iteration": iteration, "env_steps": env_steps, "mode": settings.mode}
        row |= summary.rates(results)
        self._lines["evaluations"].write(row)
        self.tracker.log(
            {f"evaluation/{key}": row[key] for key in ("success_once", "mean_return")}, iteration
        )

    def _finish(self) -> None:
        """Checkpoint, evaluation in both modes, plot, video, report, and finished.json."""
        trainer, settings, folder = self.trainer, self.settings, self.folder
        memory = measure_memory(trainer.device, trainer.worker_processes)  # before an evaluation takes more
        self.save()
        self.writer.wait()  # what is on disk survives whatever happens to the evaluation
        with trainer.simulators() as pool:
            pool.retired = True
            results = {
                mode: self._play(pool, settings.eval.episodes_per_task, mode)
                for mode in ("greedy", "sampled")
            }
            filmed = self.first and settings.eval.video and self._film(pool, results[settings.eval.mode])
        trainer.close()  # now, so that the process ends soon after finished.json
        if not self.first:
            return
        evaluation = summary.evaluation_json(trainer.spec, settings.eval.mode, results)
        folder.write_json(folder.evaluation, evaluation)
        console.print(summary.table(evaluation))
        made = ["evaluation.json", trainer.plot(folder, evaluation).name, *["videos/"] * filmed]
        if self.write_report is not None and settings.telemetry.report:
            self.write_report(folder.path)
            made.append("report.html")
        made += [] if self.writer.failed else ["checkpoints/"]
        self.tracker.finish({f"evaluation/{k}": v for k, v in evaluation.items() if isinstance(v, float)})
        measured = self._measured(memory)
        console.print(self.plan.compare(measured))
        self._write_finished(evaluation, f"{', '.join(made[:-1])} and {made[-1]}", measured)

    def _measured(self, memory: Mapping[str, int | None]) -> Measured:
        """What the run measured of its plan, all sessions together but for the memory."""
        rows, timings = read_json_lines(self.folder.metrics), read_json_lines(self.folder.timings)
        full = self.plan.lag.settled_after if self.plan.lag else 0
        counters = self.trainer.counters()
        return Measured(
            **memory,
            env_steps=counters["env_steps"],
            updates=counters["updates"],
            mean_lag_iterations=mean_after(rows, "staleness/lag_iterations_mean", full),
            mean_lag_updates=mean_after(rows, "staleness/lag_mean", full),
            training_seconds=round(sum(row["seconds"] for row in timings), 1),
        )

    def _write_finished(self, evaluation: Mapping[str, Any], made: str, measured: Measured) -> None:
        seconds = time.monotonic() - self.began
        finished = {
            **self.trainer.counters(),
            "session_seconds": round(seconds, 1),
            "checkpoint": self.writer.newest,
            "config_digest": runs.digest(self.settings),
            "plan": self.plan.record(measured),
        }
        self.folder.write_json(self.folder.finished, finished)
        say(
            f"{self.trainer.done}; success once {evaluation['success_once']:.2f} ({evaluation['mode']}, "
            f"{evaluation['episodes']} held-out initial states) after {seconds:.0f} s; {made} are in "
            f"{self.folder.path}"
        )
