"""A video of evaluation episodes, made by playing their actions again with a camera on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import imageio
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gipo_envs import EnvironmentSpec
from gipo_vla.evaluation.episodes import EpisodeResult
from gipo_vla.rollout.pool import WorkerPool

HEIGHT, WIDTH = 288, 384
FRAMES_PER_SECOND = 20


def write(path: Path, pool: WorkerPool, results: Sequence[EpisodeResult]) -> None:
    """Write an MP4 of some episodes one after the other, each with a caption.

    Simulators are deterministic, so replaying (task, initial state, seed, actions) shows what happened;
    policies need not see images for that. The pool is left in the last episode: borrow it.
    """
    spec = pool.spec
    every = max(1, round(spec.frames_per_second / spec.action_repeat / FRAMES_PER_SECOND))
    path.parent.mkdir(parents=True, exist_ok=True)
    with imageio.get_writer(
        path, fps=FRAMES_PER_SECOND, codec="libx264", macro_block_size=16, ffmpeg_log_level="error"
    ) as writer:
        for number, result in enumerate(results):
            frames = pool.film(result.plan, np.concatenate(result.actions), HEIGHT, WIDTH, every)
            caption = _caption(spec, number, result)
            # Hold the last frame for half a second, so that the eye can follow.
            for frame in frames + [frames[-1]] * (FRAMES_PER_SECOND // 2):
                writer.append_data(_captioned(frame, caption))


def _caption(spec: EnvironmentSpec, number: int, result: EpisodeResult) -> str:
    outcome = "success" if result.success_once else "no success"
    return f"{spec.tasks[result.plan.task]}  held-out state {number}  {outcome}"


def _captioned(frame: NDArray[np.uint8], caption: str) -> NDArray[np.uint8]:
    picture = Image.fromarray(frame)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, picture.width, 16), fill=(0, 0, 0))
    draw.text((4, 2), caption, fill=(255, 255, 255))
    return np.asarray(picture)
