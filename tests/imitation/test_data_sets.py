"""LIBERO's HDF5 files and LeRobot's folders, made here in small, as demonstrations."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio
import numpy as np
import pytest
from PIL import Image

from gipo_envs import CameraSettings, EnvironmentSettings, EnvironmentSpec
from gipo_envs.errors import UserError
from gipo_vla.imitation import lerobot, libero_hdf5
from gipo_vla.imitation.data_sets import as_observed, moving
from gipo_vla.imitation.demonstrations import Episode
from gipo_vla.imitation.settings import LeRobotSettings, LiberoHdf5Settings

ENV = EnvironmentSettings(
    "libero_spatial",
    "all",
    ("images", "proprio"),
    CameraSettings(("agentview", "wrist"), 32, 32),
    reward="sparse",
)


def actions_of(length: int, seed: int) -> np.ndarray:
    """(T, 7) whose third action is a no-op."""
    rng = np.random.default_rng(seed)
    actions = np.concatenate([rng.uniform(-1, 1, (length, 6)), -np.ones((length, 1))], axis=1)
    actions[2, :6] = 0.0
    return actions.astype(np.float32)


def pictures_of(length: int, seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (length, side, side, 3)).astype(np.uint8)


# -------------------------------------------------------------------------------------------------- frames


def test_frames_go_through_the_environments_own_path() -> None:
    frames = pictures_of(2, 0, side=64)
    assert np.array_equal(as_observed(frames, CameraSettings(("a",), 64, 64), rotate=False), frames)
    turned = as_observed(frames, CameraSettings(("a",), 64, 64), rotate=True)
    assert np.array_equal(turned, frames[:, ::-1, ::-1])
    assert as_observed(frames, CameraSettings(("a",), 48, 32), rotate=False).shape == (2, 48, 32, 3)
    published = as_observed(frames, CameraSettings(("a",), 256, 256, format="openvla"), rotate=False)
    assert published.shape == (2, 224, 224, 3)


def test_no_ops_neither_move_the_arm_nor_tell_the_gripper_something_new() -> None:
    actions = np.zeros((6, 7), np.float32)
    actions[:, 6] = [-1, -1, 1, 1, 1, -1]
    actions[0, 0] = actions[3, 1] = 0.5
    assert moving(actions).tolist() == [0, 2, 3, 5]


# -------------------------------------------------------------------------------------------- LIBERO's HDF5


@pytest.fixture
def hdf5_folder(tmp_path: Path, libero_spec: EnvironmentSpec) -> Path:
    """12 demonstrations of the first task, 2 of the second; lengths 5, 6, 7, ..."""
    h5py = pytest.importorskip("h5py")
    folder = tmp_path / "libero_spatial"
    folder.mkdir()
    for task, count in zip(libero_spec.tasks, (12, 2)):
        with h5py.File(folder / f"{task}_demo.hdf5", "w") as file:
            for number in range(count):
                length = 5 + number
                data = file.create_group(f"data/demo_{number}")
                data["actions"] = actions_of(length, number).astype(np.float64)
                data["obs/agentview_rgb"] = pictures_of(length, number)
                data["obs/eye_in_hand_rgb"] = pictures_of(length, 100 + number)
                data["obs/ee_states"] = np.full((length, 6), number, np.float64)
                data["obs/gripper_states"] = np.full((length, 2), -number, np.float64)
    return folder


def test_liberos_files_become_demonstrations(hdf5_folder: Path, libero_spec: EnvironmentSpec) -> None:
    settings = LiberoHdf5Settings(path=str(hdf5_folder.parent), drop_no_ops=False)
    episodes = list(libero_hdf5.episodes(settings, ENV, libero_spec))
    assert [episode.task for episode in episodes] == [0] * 12 + [1] * 2
    assert [len(episode.actions) for episode in episodes] == [*range(5, 17), 5, 6], "by number, 10 after 9"
    third = episodes[2]
    assert np.array_equal(third.actions, actions_of(7, 2))
    assert np.array_equal(third.observed_at, np.arange(7))
    assert np.array_equal(third.observations["images"][:, 0], pictures_of(7, 2))
    assert np.array_equal(third.observations["images"][:, 1], pictures_of(7, 102))
    assert np.array_equal(third.observations["proprio"], np.full((7, 8), [2.0] * 6 + [-2.0] * 2))
    assert third.observations["proprio"].dtype == np.float32


def test_no_ops_are_dropped_with_what_was_seen_there(hdf5_folder: Path, libero_spec: EnvironmentSpec) -> None:
    settings = LiberoHdf5Settings(path=str(hdf5_folder), count=1)
    first, _ = libero_hdf5.episodes(settings, ENV, libero_spec)
    kept = [0, 1, 3, 4]
    assert np.array_equal(first.actions, actions_of(5, 0)[kept])
    assert np.array_equal(first.observations["images"][:, 0], pictures_of(5, 0)[kept])
    assert np.array_equal(first.observed_at, np.arange(4))


def hdf5_problem(path: Path, spec: EnvironmentSpec, env: EnvironmentSettings = ENV) -> str:
    with pytest.raises(UserError) as caught:
        list(libero_hdf5.episodes(LiberoHdf5Settings(path=str(path)), env, spec))
    return str(caught.value)


def test_what_is_wrong_with_liberos_files_is_named(
    hdf5_folder: Path, libero_spec: EnvironmentSpec, tmp_path: Path
) -> None:
    assert "is no folder" in hdf5_problem(tmp_path / "nowhere", libero_spec)
    top = replace(ENV, camera=CameraSettings(("top", "wrist"), 32, 32))
    assert "env.camera.names has top" in hdf5_problem(hdf5_folder, libero_spec, top)
    path = hdf5_folder / f"{libero_spec.tasks[1]}_demo.hdf5"
    path.write_bytes(b"no hdf5")
    assert f"{path} is no demonstration file" in hdf5_problem(hdf5_folder, libero_spec)
    path.unlink()
    assert f"has no {path.name}" in hdf5_problem(hdf5_folder, libero_spec)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, libero_spec: EnvironmentSpec) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="pip install h5py"):
        list(libero_hdf5.episodes(LiberoHdf5Settings(path="x"), ENV, libero_spec))
    with pytest.raises(UserError, match="pip install pyarrow"):
        list(lerobot.episodes(LeRobotSettings(path="x", images=()), ENV, libero_spec))


# -------------------------------------------------------------------------------------------------- LeRobot

FEATURES = ("image", "wrist_image")
TEXTS = ("Open the drawer", "pick up the bowl", "something else")
LENGTHS = (5, 6, 7, 8)
TASKS = (1, 2, 0, 1)
"""``task_index`` of each episode."""


def png(picture: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def columns(number: int, pictures: Sequence[str] = FEATURES) -> dict[str, list[Any]]:
    """The rows of one episode."""
    length = LENGTHS[number]
    found: dict[str, list[Any]] = {
        "state": np.full((length, 8), number, np.float32).tolist(),
        "actions": actions_of(length, number).tolist(),
        "episode_index": [number] * length,
        "task_index": [TASKS[number]] * length,
    }
    for index, feature in enumerate(FEATURES):
        if feature in pictures:
            found[feature] = [png(picture) for picture in pictures_of(length, number + 100 * index)]
    return found


def info(version: str, kind: str = "image") -> dict[str, Any]:
    return {
        "codebase_version": version,
        "chunks_size": 1000,
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "state": {"dtype": "float32", "shape": [8]},
            "actions": {"dtype": "float32", "shape": [7]},
            "image": {"dtype": kind, "shape": [32, 32, 3]},
            "wrist_image": {"dtype": "image", "shape": [32, 32, 3]},
        },
    }


def write_table(path: Path, values: dict[str, list[Any]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(values), path)


def write_version_2(folder: Path, kind: str = "image") -> Path:
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info("v2.1", kind)))
    lines = [json.dumps({"task_index": index, "task": text}) for index, text in enumerate(TEXTS)]
    (folder / "meta" / "tasks.jsonl").write_text("\n".join(lines) + "\n")
    pictures = FEATURES if kind == "image" else FEATURES[1:]
    for number in range(len(LENGTHS)):
        path = folder / f"data/chunk-000/episode_{number:06d}.parquet"
        write_table(path, columns(number, pictures))
        if kind == "video":
            video = folder / f"videos/chunk-000/image/episode_{number:06d}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            shades = np.arange(LENGTHS[number], dtype=np.uint8) * 20
            frames = np.broadcast_to(shades[:, None, None, None], (LENGTHS[number], 32, 32, 3))
            imageio.mimwrite(video, list(frames), fps=10, macro_block_size=16, ffmpeg_log_level="error")
    return folder


def write_version_3(folder: Path) -> Path:
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info("v3.0")))
    write_table(
        folder / "meta" / "tasks.parquet", {"task_index": list(range(3)), "__index_level_0__": list(TEXTS)}
    )
    for file, numbers in enumerate(((0, 1), (2, 3))):
        own = [columns(number) for number in numbers]
        joined = {name: [row for part in own for row in part[name]] for name in own[0]}
        write_table(folder / f"data/chunk-000/file-{file:03d}.parquet", joined)
    return folder


def read(folder: Path, spec: EnvironmentSpec, **settings: Any) -> list[Episode]:
    values = {"images": FEATURES, "proprio": "state", "actions": "actions"} | settings
    return list(lerobot.episodes(LeRobotSettings(path=str(folder), **values), ENV, spec))


@pytest.mark.parametrize("write", [write_version_2, write_version_3])
def test_a_lerobot_folder_becomes_demonstrations(
    write: Any, tmp_path: Path, libero_spec: EnvironmentSpec
) -> None:
    """Of the environment's tasks only, by their instructions."""
    episodes = read(write(tmp_path / "set"), libero_spec, drop_no_ops=False)
    assert [(episode.task, len(episode.actions)) for episode in episodes] == [(0, 5), (1, 7), (0, 8)]
    for number, episode in zip((0, 2, 3), episodes):
        length = LENGTHS[number]
        assert np.array_equal(episode.actions, actions_of(length, number))
        assert np.array_equal(episode.observations["proprio"], np.full((length, 8), number))
        for camera in (0, 1):
            shown = episode.observations["images"][:, camera]
            assert np.array_equal(shown, pictures_of(length, number + 100 * camera))


def test_a_part_of_a_lerobot_folder_turned(tmp_path: Path, libero_spec: EnvironmentSpec) -> None:
    folder = write_version_2(tmp_path / "set")
    episodes = read(folder, libero_spec, count=1, rotate_images=True)
    assert [(episode.task, len(episode.actions)) for episode in episodes] == [(0, 4), (1, 6)]
    shown = episodes[0].observations["images"][:, 0]
    assert np.array_equal(shown, pictures_of(5, 0)[[0, 1, 3, 4], ::-1, ::-1])


def test_pictures_from_videos(tmp_path: Path, libero_spec: EnvironmentSpec) -> None:
    episodes = read(write_version_2(tmp_path / "set", "video"), libero_spec)
    shades = episodes[0].observations["images"][:, 0].mean((1, 2, 3))
    assert shades == pytest.approx([0, 20, 60, 80], abs=4)


def test_what_is_wrong_with_a_lerobot_folder_is_named(tmp_path: Path, libero_spec: EnvironmentSpec) -> None:
    def problem(**settings: Any) -> str:
        with pytest.raises(UserError) as caught:
            read(tmp_path / "set", libero_spec, **settings)
        return str(caught.value)

    pytest.importorskip("pyarrow")
    assert "is no LeRobot data set" in problem()
    write_version_2(tmp_path / "set")
    assert "demonstrations.actions is 'action', which the data set lacks; nearest: actions" in problem(
        actions="action"
    )
    assert "names 1 feature(s), env.camera.names 2" in problem(images=("image",))
    assert "state has shape (8,), the environment's actions has 7" in problem(actions="state")
    assert "gives no proprio" in problem(proprio=None)
    path = tmp_path / "set" / "meta" / "info.json"
    path.write_text(json.dumps(info("v1.6")))
    assert "codebase_version 'v1.6'" in problem()
    path.write_text(json.dumps(info("v3.0", "video")))
    assert "convert the data set to pictures" in problem()
    path.write_text(json.dumps(info("v2.1")))
    (tmp_path / "set" / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "dance"}\n')
    assert "no demonstration of 'pick up the bowl'" in problem()
