"""A video of evaluation episodes, made by playing their actions again with a camera on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gipo_vla.evaluation.episodes import EpisodeResult
from gipo_vla.rollout.pool import WorkerPool

HEIGHT, WIDTH = 288, 384
FRAMES_PER_SECOND = 20


class Projector:
    """Shows episodes again: simulators are deterministic, so replaying (task, initial state, seed, actions)
    gives the pictures of what happened, which policies need not have seen.

    An episode is drawn once, however many videos it is in. The pool is left in the last episodes: borrow it.

    Args:
        results: the episodes that will be shown; they are drawn in this order, in all workers at the same
            time.
    """

    def __init__(self, pool: WorkerPool, results: Iterable[EpisodeResult]) -> None:
        self.spec = spec = pool.spec
        every = max(1, round(spec.frames_per_second / spec.action_repeat / FRAMES_PER_SECOND))
        self._results = {id(result): result for result in results}
        episodes = [(result.plan, np.concatenate(result.actions)) for result in self._results.values()]
        self._films = zip(self._results, pool.films(episodes, HEIGHT, WIDTH, every))
        self._shown: dict[int, list[NDArray[np.uint8]]] = {}

    def frames(self, result: EpisodeResult) -> list[NDArray[np.uint8]]:
        """(HEIGHT, WIDTH, 3) each, in real time at FRAMES_PER_SECOND, the last one held for half a second so
        that the eye can follow."""
        while id(result) not in self._shown:
            drawn, frames = next(self._films)
            self._shown[drawn] = frames + [frames[-1]] * (FRAMES_PER_SECOND // 2)
        return self._shown[id(result)]


def write(path: Path, projector: Projector, results: Sequence[EpisodeResult]) -> None:
    """Write an MP4 of some episodes one after the other, each with a caption."""
    tasks = projector.spec.tasks
    path.parent.mkdir(parents=True, exist_ok=True)
    with mp4(path) as writer:
        for number, result in enumerate(results):
            told = f"{tasks[result.plan.task]}  held-out state {number}  {outcome(result)}"
            for frame in projector.frames(result):
                writer.append_data(captioned(frame, told))


def mp4(path: Path) -> Any:
    """A context that takes the frames of a video (``append_data``)."""
    import imageio  # only where a video is written, which a machine for measurements never does

    return imageio.get_writer(
        path,
        fps=FRAMES_PER_SECOND,
        codec="libx264",
        macro_block_size=16,
        ffmpeg_log_level="error",
        output_params=["-preset", "veryfast"],  # half of the default's time, for these pictures no larger
    )


def outcome(result: EpisodeResult) -> str:
    """How an episode ended, for captions."""
    return "success" if result.success_once else "no success"


def captioned(frame: NDArray[np.uint8], caption: str) -> NDArray[np.uint8]:
    """A copy with one line of text in a bar on top."""
    picture = Image.fromarray(frame)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, picture.width, 16), fill=(0, 0, 0))
    draw.text((4, 2), caption, fill=(255, 255, 255))
    return np.asarray(picture)
