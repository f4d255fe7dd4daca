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
    every = frame_step(spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    with imageio.get_writer(
        path, fps=FRAMES_PER_SECOND, codec="libx264", macro_block_size=16, ffmpeg_log_level="error"
    ) as writer:
        for number, result in enumerate(results):
            frames = pool.film(result.plan, np.concatenate(result.actions), HEIGHT, WIDTH, every)
            caption = _caption(spec, number, result)
            for frame in held(frames):
                writer.append_data(captioned(frame, caption))


def frame_step(spec: EnvironmentSpec) -> int:
    """Actions between two frames of a video in real time."""
    return max(1, round(spec.frames_per_second / spec.action_repeat / FRAMES_PER_SECOND))


def held(frames: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Frames with the last one for half a second more, so that the eye can follow."""
    return frames + [frames[-1]] * (FRAMES_PER_SECOND // 2)


def _caption(spec: EnvironmentSpec, number: int, result: EpisodeResult) -> str:
    outcome = "success" if result.success_once else "no success"
    return f"{spec.tasks[result.plan.task]}  held-out state {number}  {outcome}"


def captioned(frame: NDArray[np.uint8], caption: str) -> NDArray[np.uint8]:
    """A copy with one line of text in a bar on top."""
    picture = Image.fromarray(frame)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, picture.width, 16), fill=(0, 0, 0))
    draw.text((4, 2), caption, fill=(255, 255, 255))
    return np.asarray(picture)
