"""What training changed, side by side: the policy as it started and as it ended, on the same initial states.

The starting policy's episodes are played when a run begins and kept in its folder as (plan, actions). That is
all a deterministic simulator needs to show them again, so no second copy of the weights is ever held, and a
run that is continued elsewhere still has them.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gipo_envs import EnvironmentSpec
from gipo_envs.errors import UserError
from gipo_vla import foreign
from gipo_vla.evaluation.episodes import EpisodeResult
from gipo_vla.evaluation.video import HEIGHT, Projector, captioned, mp4, outcome
from gipo_vla.rollout.episodes import EpisodePlan, evaluation_plans

BEFORE_FILE = "before.npz"
VIDEO_FILE = "before_and_after.mp4"
SHEET_FILE = "before_and_after.png"
SHEET_FRAMES = 4
"""Of each of the two episodes of a row of the contact sheet, evenly spread in time."""

LARGEST = 2**28
"""Bytes of the file, and of what it unpacks to."""

DIVIDER = np.full((HEIGHT, 16, 3), 255, np.uint8)

Pair = tuple[EpisodeResult, EpisodeResult]
"""Before and after training, of one plan."""


def chosen_plans(spec: EnvironmentSpec, episodes: int, episodes_per_task: int) -> list[EpisodePlan]:
    """The held-out episodes to show: the first of every task, then the second, up to ``episodes``."""
    plans = evaluation_plans(spec, episodes_per_task)
    return sorted(plans, key=lambda plan: (plan.initial_state, plan.task))[:episodes]


def save(path: Path, results: Sequence[EpisodeResult]) -> None:
    """Keep episodes for later: plans and outcomes as JSON, actions as arrays. Nothing executes on load."""
    told = [asdict(result.plan) | {"outcome": {"success_once": result.success_once}} for result in results]
    arrays: dict[str, Any] = {"episodes": np.array(json.dumps(told))}
    arrays |= {f"actions_{index}": np.concatenate(result.actions) for index, result in enumerate(results)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    temporary.replace(path)


def load(path: Path) -> list[EpisodeResult]:
    """What ``save`` kept. Raises UserError: the file holds something else, or more than episodes can take."""
    with (
        foreign.open_regular(path, LARGEST) as file,
        foreign.understood(path, zipfile.BadZipFile, zlib.error),
    ):
        with zipfile.ZipFile(file) as parts:
            unpacked = sum(part.file_size for part in parts.infolist())
        if unpacked > LARGEST:
            raise UserError(f"{path} unpacks to {unpacked:,} bytes: episodes take at most {LARGEST:,}")
        file.seek(0)
        with np.load(file, allow_pickle=False) as stored:
            told = foreign.parse_json(json.dumps(json.loads(str(stored["episodes"]))))
            return [_episode(one, stored[f"actions_{index}"]) for index, one in enumerate(told)]


def _episode(told: dict[str, Any], actions: NDArray[Any]) -> EpisodeResult:
    if actions.dtype != np.float32 or actions.ndim != 2 or not np.isfinite(actions).all():
        raise ValueError(
            f"its actions are {actions.dtype} {actions.shape}, not (steps, dimensions) of float32"
        )
    plan = EpisodePlan(**{key: value for key, value in told.items() if key != "outcome"})
    return EpisodeResult(plan, actions=[actions], success_once=bool(told["outcome"]["success_once"]))


def pairs_of(
    spec: EnvironmentSpec, before: Sequence[EpisodeResult], after: Sequence[EpisodeResult]
) -> list[Pair]:
    """The episodes of ``before`` with those of ``after`` that have the same plans."""
    trained = {result.plan: result for result in after}
    return [
        (own, trained[own.plan])
        for own in before
        if own.plan in trained
        and own.actions[0].shape[1] == spec.action_size
        and 1 <= len(own.actions[0]) <= spec.actions_limit
    ]


def write(folder: Path, projector: Projector, pairs: Sequence[Pair]) -> list[Path]:
    """A video, and a contact sheet of it: left the first episode of each pair, right the second. Returns the
    files; none if there is no pair."""
    if not pairs:
        return []
    video, sheet = folder / VIDEO_FILE, folder / SHEET_FILE
    rows = []
    with mp4(video) as writer:
        for pair in pairs:
            sides = [_captioned(projector, result, when) for result, when in zip(pair, ("before", "after"))]
            rows.append(np.hstack([*_spread(sides[0]), DIVIDER, *_spread(sides[1])]))
            # The shorter episode waits at its last frame for the other.
            length = max(map(len, sides))
            for left, right in zip(*(side + [side[-1]] * (length - len(side)) for side in sides)):
                writer.append_data(np.hstack([left, right]))
    picture = Image.fromarray(np.vstack(rows))
    picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS).save(sheet)
    return [video, sheet]


def _captioned(projector: Projector, result: EpisodeResult, when: str) -> list[NDArray[np.uint8]]:
    caption = f"{when}: {outcome(result)}    {projector.spec.tasks[result.plan.task]}"
    return [captioned(frame, caption) for frame in projector.frames(result)]


def _spread(frames: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    places = np.linspace(0, len(frames) - 1, SHEET_FRAMES).round().astype(int)
    return [frames[place] for place in places]
