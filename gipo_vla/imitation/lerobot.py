"""A LeRobot data set's folder, format 2 (one file an episode) or 3 (many episodes a file).

    meta/info.json                     features, and where the files are
    meta/tasks.jsonl | tasks.parquet   instructions by ``task_index``
    data/...parquet                    one row a step: states, actions, indices, encoded pictures
    videos/...mp4                      or pictures as videos, one file an episode (format 2)

An episode belongs to the environment's task whose instruction it has, letter case aside; others are left out.

Source: ``lerobot.datasets`` (docs of LeRobotDataset v2.1 and v3.0).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import imageio
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gipo_envs import EnvironmentSettings, EnvironmentSpec
from gipo_envs.errors import UserError, nearest
from gipo_vla.imitation.data_sets import check_observations, converted, library
from gipo_vla.imitation.demonstrations import Episode
from gipo_vla.imitation.settings import LeRobotSettings

Table = dict[str, Any]
"""Columns of one episode by name: arrays, for pictures lists of what the file holds."""


def episodes(settings: LeRobotSettings, env: EnvironmentSettings, spec: EnvironmentSpec) -> Iterator[Episode]:
    """The demonstrations of the environment's tasks, in the data set's order.

    Raises:
        UserError: pyarrow is missing, the folder is no such data set, or lacks what the policy observes.
    """
    parquet = library("pyarrow.parquet", settings.name)
    folder = Path(settings.path)
    info = _read_info(folder)
    _check_features(settings, info, env, spec)
    task_of = _tasks(parquet, folder, spec)
    taken = [0] * len(spec.tasks)
    for table in _tables(parquet, folder, settings, spec):
        task = task_of.get(int(table["task_index"][0]))
        if task is None or taken[task] == settings.count:
            continue
        taken[task] += 1
        frames = [partial(_pictures, table, feature, folder, info) for feature in settings.images]
        proprio = table.get(settings.proprio or "", [])
        yield converted(task, table[settings.actions], proprio, frames, settings, env, spec)


# --------------------------------------------------------------------------------------------- description


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / "meta" / "info.json"
    try:
        info: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"demonstrations.path={folder} is no LeRobot data set: {path} cannot be read"
        ) from error
    version = str(info.get("codebase_version", ""))
    if not version.startswith(("v2", "v3")):
        raise UserError(f"{path} has codebase_version {version!r}: formats 2 and 3 are read")
    return info


def _check_features(
    settings: LeRobotSettings, info: dict[str, Any], env: EnvironmentSettings, spec: EnvironmentSpec
) -> None:
    features = info["features"]
    given = ["images"] if settings.proprio is None else ["images", "proprio"]
    check_observations(spec, settings.name, given)
    wanted = {"demonstrations.actions": settings.actions}
    sizes = [("actions", settings.actions, spec.action_size)]
    if "images" in spec.observation:
        if len(settings.images) != len(env.camera.names):
            raise UserError(
                f"demonstrations.images names {len(settings.images)} feature(s), env.camera.names "
                f"{len(env.camera.names)} camera(s): give one feature for each camera"
            )
        wanted |= {f"demonstrations.images[{i}]": key for i, key in enumerate(settings.images)}
    if "proprio" in spec.observation and settings.proprio is not None:
        wanted["demonstrations.proprio"] = settings.proprio
        sizes.append(("proprio", settings.proprio, spec.observation["proprio"].shape[0]))
    for setting, feature in wanted.items():
        if feature not in features:
            raise UserError(
                f"{setting} is {feature!r}, which the data set lacks; {nearest(feature, features)}"
            )
    for what, feature, size in sizes:
        shape = tuple(features[feature]["shape"])
        if shape != (size,):
            raise UserError(
                f"{feature} has shape {shape}, the environment's {what} has {size}: they must agree"
            )
    if info["codebase_version"].startswith("v3") and any(
        features[key]["dtype"] == "video" for key in settings.images if "images" in spec.observation
    ):
        raise UserError(
            "videos of LeRobot's format 3 hold several episodes a file and are not read: convert the data "
            "set to pictures, or to format 2.1"
        )


def _tasks(parquet: Any, folder: Path, spec: EnvironmentSpec) -> dict[int, int]:
    """The data set's ``task_index`` -> index of the environment's task with that instruction."""
    meta = folder / "meta"
    if (meta / "tasks.jsonl").is_file():
        lines = (meta / "tasks.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        instructions = {int(row["task_index"]): str(row["task"]) for row in rows}
    elif (meta / "tasks.parquet").is_file():
        table = parquet.read_table(meta / "tasks.parquet").to_pydict()
        # pandas wrote the instructions as the index of the table.
        texts = next(column for name, column in table.items() if name != "task_index")
        instructions = {int(index): str(text) for index, text in zip(table["task_index"], texts)}
    else:
        raise UserError(f"{meta} has neither tasks.jsonl nor tasks.parquet: the data set is incomplete")
    ours = {text.strip().lower(): index for index, text in enumerate(spec.instructions)}
    texts = {index: text.strip().lower() for index, text in instructions.items()}
    found = {index: ours[text] for index, text in texts.items() if text in ours}
    if not found:
        raise UserError(
            f"{folder} has no demonstration of {spec.instructions[0]!r}; "
            f"{nearest(spec.instructions[0], instructions.values())}"
        )
    return found


# ----------------------------------------------------------------------------------------------------- data


def _tables(parquet: Any, folder: Path, settings: LeRobotSettings, spec: EnvironmentSpec) -> Iterator[Table]:
    """The steps of one episode after the other."""
    files = sorted((folder / "data").rglob("*.parquet"))
    if not files:
        raise UserError(f"{folder} has no data/**/*.parquet: the data set is incomplete")
    for path in files:
        names = parquet.read_schema(path).names
        wanted = ["episode_index", "task_index", settings.actions]
        if "proprio" in spec.observation and settings.proprio is not None:
            wanted.append(settings.proprio)
        if "images" in spec.observation:
            wanted += [name for name in settings.images if name in names]  # videos are files of their own
        columns = parquet.read_table(path, columns=wanted).to_pydict()
        numbers = np.asarray(columns["episode_index"])
        for episode in np.unique(numbers):
            rows = np.flatnonzero(numbers == episode)
            yield {name: [column[row] for row in rows] for name, column in columns.items()}


def _pictures(
    table: Table, feature: str, folder: Path, info: dict[str, Any], kept: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Frames (N, h, w, 3) of some steps of an episode."""
    if feature in table:
        return np.stack([_decoded(table[feature][row], folder) for row in kept])
    episode = int(table["episode_index"][0])
    path = folder / info["video_path"].format(
        episode_chunk=episode // info["chunks_size"], episode_index=episode, video_key=feature
    )
    try:
        frames = imageio.mimread(path, memtest=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if len(frames) < len(table["episode_index"]):
        raise UserError(
            f"{path} has {len(frames)} frames for {len(table['episode_index'])} steps: the data set is "
            "damaged"
        )
    return np.stack([np.asarray(frames[row])[..., :3] for row in kept])


def _decoded(picture: dict[str, Any], folder: Path) -> NDArray[np.uint8]:
    """A picture of a parquet file: encoded in the table, or a file beside it."""
    data = picture.get("bytes")
    opened = Image.open(io.BytesIO(data) if data else folder / picture["path"])
    return np.asarray(opened.convert("RGB"))
