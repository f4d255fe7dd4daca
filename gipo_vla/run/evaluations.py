"""Held-out episodes of a run under way and at its end, shared out over ranks, and their videos."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gipo_envs import gl
from gipo_envs.errors import UserError
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.distributed import group
from gipo_vla.evaluation import before_and_after, video
from gipo_vla.evaluation.episodes import EpisodeResult, play
from gipo_vla.rollout.episodes import EpisodePlan, Role, evaluation_plans, integer_seed
from gipo_vla.rollout.pool import WorkerPool
from gipo_vla.run.trainer import Trainer
from gipo_vla.telemetry.console import say

MODES = ("greedy", "sampled")


def play_together(
    trainer: Trainer, pool: WorkerPool, episodes_per_task: int, greedy: bool
) -> list[EpisodeResult]:
    """Results of all held-out episodes, on every rank (a collective call)."""
    plans = evaluation_plans(trainer.spec, episodes_per_task)
    own = plans[group.rank() :: group.world_size()]
    results = play_here(trainer, pool, own, greedy) if own else []
    gathered = [result for part in group.gather(results) for result in part]
    return sorted(gathered, key=lambda result: (result.plan.task, result.plan.initial_state))


def play_here(
    trainer: Trainer, pool: WorkerPool, plans: Sequence[EpisodePlan], greedy: bool
) -> list[EpisodeResult]:
    """Episodes played by this rank's workers."""
    generator = torch.Generator(trainer.device)
    generator.manual_seed(integer_seed(trainer.settings.seed, Role.EVALUATION, group.rank()))
    temperature = trainer.settings.rollout.temperature
    return play(trainer.policy, pool, plans, trainer.device, temperature, greedy, generator)


def keep_before(trainer: Trainer, pool: WorkerPool, folder: RunFolder) -> None:
    """Keep some episodes of the policy as it starts, for the video at the end."""
    settings = trainer.settings.eval
    plans = before_and_after.chosen_plans(trainer.spec, settings.video_episodes, settings.episodes_per_task)
    results = play_here(trainer, pool, plans, settings.mode == "greedy")
    before_and_after.save(folder.videos / before_and_after.BEFORE_FILE, results)


def film(trainer: Trainer, pool: WorkerPool, folder: RunFolder, results: Sequence[EpisodeResult]) -> bool:
    """Write videos of held-out states, also beside the policy as it started where ``keep_before`` kept that.

    Returns:
        False without OpenGL; the reason is on the console.
    """
    try:
        gl.choose()
    except UserError as error:
        say(f"no video: {error}")
        return False
    kept = folder.videos / before_and_after.BEFORE_FILE
    with pool.borrowed(lambda plan: plan):
        projector = video.Projector(pool)
        shown = results[: trainer.settings.eval.video_episodes]
        video.write(folder.videos / "evaluation.mp4", projector, shown)
        if kept.exists():
            before_and_after.write(folder.videos, projector, before_and_after.load(kept), results)
    return True
