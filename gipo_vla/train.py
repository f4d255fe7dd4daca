"""Train a policy: ``python -m gipo_vla.train [overrides]``, or the same under torchrun.

    python -m gipo_vla.train                                     the default experiment, on this machine
    torchrun --nproc-per-node=8 -m gipo_vla.train experiment=... one actor-learner a GPU
    python -m gipo_vla.train resume=RUN_DIR                      go on with a run

Ends with an evaluation on initial states that training never draws, a learning curve, a video of the
trained policy, and one line that says where everything is.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gipo_envs import gl
from gipo_envs.errors import UserError

from gipo_vla import cli, config
from gipo_vla.checkpoint import run_state
from gipo_vla.checkpoint.run_folder import RunFolder, create
from gipo_vla.config import Config
from gipo_vla.distributed import group
from gipo_vla.evaluation import summary, video
from gipo_vla.evaluation.episodes import EpisodeResult, play
from gipo_vla.pipeline import Pipeline, Plans, build_policy, environment_spec, plan
from gipo_vla.policies.base import Policy
from gipo_vla.rollout.episodes import EpisodePlan, Role, evaluation_plans, integer_seed
from gipo_vla.telemetry import plots, tracker
from gipo_vla.telemetry.console import TrainingProgress, console, settings_table
from gipo_vla.telemetry.metrics import JsonLines, read_json_lines

USAGE = """
usage: python -m gipo_vla.train [group=option] [key=value] ...
       torchrun --nproc-per-node=N -m gipo_vla.train ...

Trains a policy and evaluates it. The default takes a few minutes on two CPU cores.
"""


def main(arguments: Sequence[str]) -> int:
    overrides = cli.handle_common_flags(arguments, "train", USAGE)
    if overrides is None:
        return 0
    train(config.load("train", overrides))
    return 0


def train(settings: Config) -> Path:
    """A training session; returns the run folder.

    Raises:
        UserError: before any worker is started, whatever is wrong with the settings or the machine.
    """
    began = time.monotonic()
    spec = environment_spec(settings)
    if "images" in spec.observation:
        gl.choose()
    device = group.choose_device(settings.learner.device)
    torch.set_num_threads(settings.learner.threads)
    policy = build_policy(settings, spec, device)
    plans = plan(settings, policy, spec, group.world_size())
    group.start(device)
    try:
        return _train(settings, policy, plans, device, began)
    finally:
        group.stop()


def _train(settings: Config, policy: Policy, plans: Plans, device: torch.device, began: float) -> Path:
    first = group.rank() == 0
    folder = _agree_on_folder(settings)
    settings = dataclasses.replace(settings, run_dir=str(folder.path))
    if first:
        _print_plans(settings, policy, plans, device)
    pipeline = Pipeline(settings, policy, plans, device)
    try:
        with Session(settings, folder, pipeline, quiet=not first) as session:
            session.run()
            session.finish(began)
    finally:
        pipeline.close()
    return folder.path


def _agree_on_folder(settings: Config) -> RunFolder:
    """Rank 0 makes the folder; a refusal is raised on every rank."""
    problem, path = None, None
    if group.rank() == 0:
        try:
            path = create(settings).path
        except UserError as error:
            problem = str(error)
    problem, path = group.from_first((problem, path))
    if problem is not None:
        raise UserError(problem)
    return RunFolder(path)


def _print_plans(settings: Config, policy: Policy, plans: Plans, device: torch.device) -> None:
    """What is active, what it will cost and how old the data will be."""
    assert isinstance(policy, torch.nn.Module)
    spec, lag, memory = plans.spec, plans.staleness, plans.memory
    ranks, rollout, learner = group.world_size(), settings.rollout, settings.learner
    trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    tasks = spec.tasks[0] if len(spec.tasks) == 1 else f"{len(spec.tasks)} tasks"
    settings_table(
        f"gipo_vla  {settings.experiment}  seed {settings.seed}",
        [
            (
                "environment",
                f"{settings.env.family} {tasks}, {settings.env.reward} reward, "
                f"{spec.step_limit} env steps, actions held {spec.action_repeat}",
            ),
            ("instruction", spec.instructions[0] + (" ..." if len(spec.tasks) > 1 else "")),
            (
                "policy",
                f"{settings.policy.name}, {trainable:,} trainable parameters, chunk {policy.chunk} x "
                f"{policy.action_dims} tokens of {policy.bins}",
            ),
            ("objective", _values(settings.objective)),
            ("regularizers", _values(settings.regularizers)),
            ("credit", _values(settings.credit)),
            (
                "rollout",
                f"{ranks} rank(s) x {rollout.workers} workers x {rollout.envs_per_worker} environments, "
                f"{plans.steps} vector steps an iteration, collect {rollout.collect}",
            ),
            (
                "learner",
                f"DeepSpeed on {device}, {learner.updates} updates an iteration of "
                f"{learner.batch_segments} segments x {settings.replay.segment_length}, learning rates "
                f"{learner.policy_learning_rate:g} / {learner.value_learning_rate:g}",
            ),
            (
                "replay",
                f"{settings.replay.capacity:,} transitions = {lag.iterations_held:.1f} iterations, "
                f"{memory.expected / 2**20:,.0f} MB a rank (at most {memory.worst / 2**20:,.0f})",
            ),
            (
                "expected lag",
                f"mean {lag.mean_lag_iterations:.1f} iterations ({lag.mean_lag_updates:.0f} updates), "
                f"greatest {lag.max_lag_iterations:.1f} ({lag.max_lag_updates:.0f}); every "
                f"transition is used {lag.samples_per_transition:.1f} times",
            ),
            ("run folder", str(settings.run_dir)),
        ],
    )


def _values(section: Any) -> str:
    values = dataclasses.asdict(section)
    name = values.pop("name", "")
    return f"{name} " + ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


class Session:
    """The iterations of one process of a run, and what is written meanwhile."""

    def __init__(self, settings: Config, folder: RunFolder, pipeline: Pipeline, quiet: bool) -> None:
        self.settings, self.folder, self.pipeline = settings, folder, pipeline
        self.first = group.rank() == 0
        self.quiet = quiet
        self.tracker: tracker.Tracker = tracker.NoTracker()

    def __enter__(self) -> Session:
        if self.first:
            folder, settings = self.folder, self.settings
            folder.config.write_text(config.to_yaml(settings))
            self.metrics = JsonLines(folder.metrics, self.pipeline.iteration)
            self.timings = JsonLines(folder.timings, self.pipeline.iteration)
            self.evaluations = JsonLines(folder.evaluations, self.pipeline.iteration)
            self.tracker = tracker.start(settings.telemetry, folder.path, config.to_dict(settings))
        return self

    def __exit__(self, *_: object) -> None:
        if self.first:
            for lines in (self.metrics, self.timings, self.evaluations):
                lines.close()

    # ------------------------------------------------------------------------------------------ iterations

    def run(self) -> None:
        """Iterations until the run's last, or ``stop_after``."""
        settings, pipeline = self.settings, self.pipeline
        last = min(settings.iterations, settings.stop_after or settings.iterations)
        evaluate_at = settings.eval.every_env_steps
        with TrainingProgress(
            settings.iterations, pipeline.iteration, settings.telemetry.log_every, self.quiet
        ) as progress:
            while pipeline.iteration < last:
                before = self._env_steps()
                done = pipeline.run_iteration()
                assert done is not None
                row, timings = done
                if self.first:
                    self.metrics.write(row)
                    self.timings.write({"iteration": pipeline.iteration, **timings})
                    progress.update(row, timings)
                    if pipeline.iteration % settings.telemetry.log_every == 0:
                        self.tracker.log(row, pipeline.iteration)
                after = int(row["env_steps"] or 0)
                if evaluate_at and before // evaluate_at < after // evaluate_at:
                    self._evaluate_under_way(after)
                every = settings.checkpoint.every_iterations
                if every and pipeline.iteration % every == 0 and pipeline.iteration < last:
                    self.save()

    def _env_steps(self) -> int:
        return sum(group.gather(self.pipeline.actor.env_steps))

    def save(self) -> Path:
        """Write a checkpoint."""
        self.pipeline.actor.finish()
        return run_state.save(self.folder.checkpoints, self.pipeline, {"wandb_id": self.tracker.id})

    # ------------------------------------------------------------------------------------------ evaluation

    def _play(self, policy: Policy, episodes_per_task: int, greedy: bool) -> list[EpisodeResult]:
        """Held-out episodes, shared out over ranks; every rank gets all results."""
        pipeline = self.pipeline
        pipeline.actor.finish()
        plans: list[EpisodePlan] = evaluation_plans(pipeline.plans.spec, episodes_per_task)
        generator = torch.Generator(pipeline.device)
        generator.manual_seed(integer_seed(self.settings.seed, Role.EVALUATION, pipeline.rank))
        own = plans[pipeline.rank :: pipeline.world]
        results = (
            play(
                policy,
                pipeline.pool,
                own,
                pipeline.device,
                self.settings.rollout.temperature,
                greedy,
                generator,
            )
            if own
            else []
        )
        gathered = [result for part in group.gather(results) for result in part]
        return sorted(gathered, key=lambda result: (result.plan.task, result.plan.initial_state))

    def _evaluate_under_way(self, env_steps: int) -> None:
        mode = self.settings.eval.mode
        results = self._play(
            self.pipeline.policy, self.settings.eval.during_training_episodes_per_task, mode == "greedy"
        )
        if self.first:
            row = {"iteration": self.pipeline.iteration, "env_steps": env_steps, "mode": mode}
            row |= summary.rates(results)
            self.evaluations.write(row)
            self.tracker.log(
                {f"evaluation/{name}": row[name] for name in ("success_once", "mean_return")},
                self.pipeline.iteration,
            )

    # ------------------------------------------------------------------------------------------------ end

    def finish(self, began: float) -> None:
        """Checkpoint; and at the end of the run evaluation, plots, video and finished.json."""
        settings, folder = self.settings, self.folder
        checkpoint = self.save()
        if self.pipeline.iteration < settings.iterations:
            if self.first:
                console.print(
                    f"stopped after iteration {self.pipeline.iteration}; go on with resume={folder.path}"
                )
            return
        episodes = settings.eval.episodes_per_task
        results = {
            mode: self._play(self.pipeline.policy, episodes, mode == "greedy")
            for mode in ("greedy", "sampled")
        }
        if not self.first:
            return
        spec = self.pipeline.plans.spec
        evaluation = summary.evaluation_json(spec, settings.eval.mode, results)
        folder.write_json(folder.evaluation, evaluation)
        console.print(summary.table(evaluation))
        rows = read_json_lines(folder.metrics)
        plots.learning_curve(
            folder.learning_curve,
            f"{settings.experiment}: {', '.join(spec.tasks[:3])}, {settings.objective.name}, seed {settings.seed}",
            rows,
            read_json_lines(folder.evaluations),
            evaluation | {"env_steps": rows[-1]["env_steps"]},
        )
        if settings.eval.video:
            self._write_video(results[settings.eval.mode])
        self.tracker.finish({f"evaluation/{k}": v for k, v in evaluation.items() if isinstance(v, float)})
        folder.write_json(
            folder.finished,
            {
                "iterations": self.pipeline.iteration,
                "env_steps": rows[-1]["env_steps"],
                "updates": self.pipeline.learner.version,
                "session_seconds": round(time.monotonic() - began, 1),
                "checkpoint": checkpoint.name,
                "config_digest": config.digest(settings),
            },
        )
        console.print(
            f"success once {evaluation['success_once']:.2f} ({settings.eval.mode}, {evaluation['episodes']} "
            f"held-out initial states) after {time.monotonic() - began:.0f} s; evaluation.json, "
            f"learning_curve.png, videos/ and checkpoints/ are in {folder.path}",
            soft_wrap=True,
        )

    def _write_video(self, results: Sequence[EpisodeResult]) -> None:
        """A video of the first held-out states (in rank 0's workers); without OpenGL, the reason instead."""
        try:
            gl.choose()
        except UserError as error:
            console.print(f"no video: {error}")
            return
        chosen = results[: self.settings.eval.video_episodes]
        pool = self.pipeline.pool
        with pool.borrowed(lambda plan: plan):
            video.write(self.folder.videos / "evaluation.mp4", pool, chosen)


if __name__ == "__main__":
    cli.run(main)
