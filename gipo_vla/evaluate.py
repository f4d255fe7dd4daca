"""Evaluate a trained policy: ``python -m gipo_vla.evaluate checkpoint=RUN_DIR [overrides]``.

    python -m gipo_vla.evaluate checkpoint=runs/my-run
    python -m gipo_vla.evaluate checkpoint=runs/my-run eval.episodes_per_task=150 video=trained.mp4
    python -m gipo_vla.evaluate checkpoint=runs/my-run env.task=reach-v3 out=reach.json
    python -m gipo_vla.evaluate checkpoint=runs/after versus=runs/before
    python -m gipo_vla.evaluate experiment=... policy.checkpoint=FOLDER     a published OpenVLA-OFT checkpoint

The settings are those of the run; any of them can be overridden. Without ``checkpoint``, the command
evaluates the policy that a training run would start from: ``policy.checkpoint`` or ``init_from``, as an
experiment or the command line names it. Initial states are held out from training and the same for every
policy. Prints a table, and one line of JSON (the content of evaluation.json) on stdout.

``versus`` names a second run or checkpoint. Its policy plays the same episodes, with the settings that the
first one has for environment and evaluation; the difference in success comes with a paired interval and
McNemar's exact test.

A policy with a continuous head is evaluated greedily only: it has nothing to sample from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gipo_envs import gl, needs_opengl
from gipo_envs.errors import UserError
from gipo_vla import cli, options
from gipo_vla.assembly import environment_spec, named_run, policy_at
from gipo_vla.distributed.group import choose_device
from gipo_vla.evaluation import paired, summary, video
from gipo_vla.evaluation.episodes import EpisodeResult, play, simulators
from gipo_vla.rollout.episodes import evaluation_plans
from gipo_vla.run.refusals import refuse_to_play
from gipo_vla.settings.cloning import SftSettings
from gipo_vla.settings.runs import RunSettings
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.console import console


@dataclass(frozen=True)
class Options:
    """What to evaluate, and where to write."""

    checkpoint: str | None = None
    """A run folder of train or sft, of which the newest usable checkpoint is taken, or a checkpoint's
    folder."""
    versus: str | None = None
    """A second run or checkpoint, whose policy plays the same episodes."""
    out: Path | None = None
    """File to write the JSON to as well."""
    video: Path | None = None
    """MP4 file for a video of the first episodes."""


def main(arguments: Sequence[str]) -> int:
    parsed = options.parse(arguments, Options, __doc__ or "", TrainingSettings, SftSettings)
    if parsed is None:
        return 0
    own, overrides = parsed
    settings, checkpoint = named_run(own.checkpoint, overrides)
    evaluation = evaluate(settings, checkpoint, own.video, own.versus)
    versus = evaluation.get("versus")
    if versus is not None:
        console.print(summary.table(versus["evaluation"]))
    console.print(summary.table(evaluation))
    if versus is not None:
        console.print(paired.table(versus["paired"]))
    if own.out:
        own.out.write_text(json.dumps(evaluation, indent=2) + "\n")
    print(json.dumps(evaluation))
    return 0


def evaluate(
    settings: RunSettings,
    checkpoint: Path | None,
    video_path: Path | None = None,
    versus: str | None = None,
) -> dict[str, Any]:
    """Both modes over the held-out initial states; the content of evaluation.json.

    Args:
        checkpoint: of a run; None: the policy that a run of these settings would start from.
        versus: run folder or checkpoint of a second policy, which plays the same episodes; then there are,
            under ``versus``, its checkpoint, its evaluation, and for each mode ``paired.compare``.

    Raises:
        UserError: settings, checkpoint and machine do not go together.
    """
    other = named_run(versus, []) if versus else None
    spec, mode = environment_spec(settings), settings.eval.mode
    first = _play(settings, checkpoint, settings, video_path)
    evaluation = summary.evaluation_json(spec, mode, first)
    if other is not None:
        second = _play(*other, settings, None)
        evaluation["versus"] = {
            "checkpoint": str(other[1]),
            "evaluation": summary.evaluation_json(spec, mode, second),
            "paired": {name: paired.compare(first[name], second[name]) for name in first if name in second},
        }
    return evaluation


def _play(
    owner: RunSettings, checkpoint: Path | None, settings: RunSettings, video_path: Path | None
) -> dict[str, list[EpisodeResult]]:
    """Results by mode of the policy that ``owner`` has, in the environment of ``settings``."""
    spec = environment_spec(settings)
    if video_path or needs_opengl(settings.env):
        gl.choose()
    device = choose_device(settings.learner.device)
    for used in (owner, settings):
        refuse_to_play(used, spec, device)
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
    with simulators(settings, spec, policy.chunk) as pool:
        results = {mode: play(settings, policy, pool, plans, device, mode) for mode in modes}
        if video_path:
            shown = results[settings.eval.mode][: settings.eval.video_episodes]
            video.write(video_path, video.Projector(pool, shown), shown)
    return results


if __name__ == "__main__":
    cli.run(main)
