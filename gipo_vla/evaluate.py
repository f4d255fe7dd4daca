"""Evaluate a trained policy: ``python -m gipo_vla.evaluate checkpoint=RUN_DIR [overrides]``.

    python -m gipo_vla.evaluate checkpoint=runs/my-run
    python -m gipo_vla.evaluate checkpoint=runs/my-run eval.episodes_per_task=150 video=trained.mp4
    python -m gipo_vla.evaluate checkpoint=runs/my-run env.task=reach-v3 out=reach.json
    python -m gipo_vla.evaluate checkpoint=runs/after versus=runs/before
    python -m gipo_vla.evaluate experiment=... policy.checkpoint=FOLDER     a published OpenVLA-OFT checkpoint

``checkpoint`` is a run folder of train or sft (its newest usable checkpoint is taken) or one checkpoint's
folder. The settings are those of the run; any of them can be overridden. Without it, what is evaluated is
``policy.checkpoint``, or ``init_from``, as an experiment or the command line names it: where a training run
would start. Initial states are held out from training and the same for every policy. Prints a table, and one
line of JSON (evaluation.json's) on stdout.

``versus`` names a second run or checkpoint. Its policy plays the same episodes, with the settings that the
first one has for environment and evaluation; the difference in success comes with a paired interval and
McNemar's exact test.

A policy with a continuous head is evaluated greedily only: it has nothing to sample from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gipo_envs import gl, needs_opengl
from gipo_envs.errors import UserError
from gipo_vla import cli
from gipo_vla.assembly import environment_spec, named_run, policy_at
from gipo_vla.distributed.group import choose_device
from gipo_vla.evaluation import paired, summary, video
from gipo_vla.evaluation.episodes import EpisodeResult, play
from gipo_vla.imitation.settings import AnyRun
from gipo_vla.rollout.episodes import Role, evaluation_plans, integer_seed
from gipo_vla.rollout.pool import WorkerPool
from gipo_vla.telemetry.console import console

OWN_KEYS = ("checkpoint", "versus", "out", "video")


def main(arguments: Sequence[str]) -> int:
    overrides = cli.handle_common_flags(arguments, "train", __doc__ or "")
    if overrides is None:
        return 0
    own = {key: value for key, _, value in (text.partition("=") for text in overrides) if key in OWN_KEYS}
    rest = [text for text in overrides if text.partition("=")[0] not in OWN_KEYS]
    settings, checkpoint = named_run(own.get("checkpoint"), rest)
    video_path = Path(own["video"]) if own.get("video") else None
    if own.get("versus"):
        evaluation = compare(settings, checkpoint, own["versus"], video_path)
        console.print(summary.table(evaluation["versus"]["evaluation"]))
    else:
        evaluation = evaluate(settings, checkpoint, video_path)
    console.print(summary.table(evaluation))
    if "versus" in evaluation:
        console.print(paired.table(evaluation["versus"]["paired"]))
    if own.get("out"):
        Path(own["out"]).write_text(json.dumps(evaluation, indent=2) + "\n")
    print(json.dumps(evaluation))
    return 0


def evaluate(settings: AnyRun, checkpoint: Path | None, video_path: Path | None = None) -> dict[str, Any]:
    """Both modes over the held-out initial states; the content of evaluation.json.

    Args:
        checkpoint: of a run; None: the policy that a run of these settings would start from.

    Raises:
        UserError: settings, checkpoint and machine do not go together.
    """
    results = _play(settings, checkpoint, settings, video_path)
    return summary.evaluation_json(environment_spec(settings), settings.eval.mode, results)


def compare(
    settings: AnyRun, checkpoint: Path | None, versus: str, video_path: Path | None = None
) -> dict[str, Any]:
    """Two policies on the same held-out initial states: ``evaluate`` of the first and, under ``versus``, the
    second's checkpoint, its evaluation, and for each mode ``paired.compare``.

    Args:
        versus: run folder or checkpoint of the second; only its policy is taken from there.

    Raises:
        UserError: as ``evaluate``, for either.
    """
    other, other_checkpoint = named_run(versus, [])
    spec, mode = environment_spec(settings), settings.eval.mode
    second = _play(other, other_checkpoint, settings, None)
    first = _play(settings, checkpoint, settings, video_path)
    return summary.evaluation_json(spec, mode, first) | {
        "versus": {
            "checkpoint": str(other_checkpoint),
            "evaluation": summary.evaluation_json(spec, mode, second),
            "paired": {name: paired.compare(first[name], second[name]) for name in first if name in second},
        }
    }


def _play(
    owner: AnyRun, checkpoint: Path | None, settings: AnyRun, video_path: Path | None
) -> dict[str, list[EpisodeResult]]:
    """Results by mode of the policy that ``owner`` has, in the environment of ``settings``."""
    spec = environment_spec(settings)
    if video_path or needs_opengl(settings.env):
        gl.choose()
    device = choose_device(settings.learner.device)
    torch.set_num_threads(settings.learner.threads)
    policy: Any = policy_at(owner, spec, device, checkpoint)
    modes: tuple[str, ...] = ("greedy", "sampled")
    if getattr(policy, "head", "tokens") == "l1":
        modes = ("greedy",)
        if settings.eval.mode not in modes:
            raise UserError(
                f"eval.mode is {settings.eval.mode}, but a continuous head has nothing to sample from: "
                "set it to greedy"
            )
    plans = evaluation_plans(spec, settings.eval.episodes_per_task)
    rollout = settings.rollout
    results = {}
    with WorkerPool(
        settings.env,
        spec,
        rollout.workers,
        rollout.envs_per_worker,
        policy.chunk,
        lambda plan: plan,
        rollout.worker_timeout_s,
    ) as pool:
        pool.begin([plans[0]] * pool.envs)
        for mode in modes:
            generator = torch.Generator(device)
            generator.manual_seed(integer_seed(settings.seed, Role.EVALUATION, 0))
            results[mode] = play(
                policy, pool, plans, device, rollout.temperature, mode == "greedy", generator
            )
        if video_path:
            shown = results[settings.eval.mode][: settings.eval.video_episodes]
            video.write(video_path, video.Projector(pool), shown)
    return results


if __name__ == "__main__":
    cli.run(main)
