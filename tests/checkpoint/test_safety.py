"""Nothing executes on load, nothing is for everybody to write, nothing secret is written down."""

from __future__ import annotations

import json
import os
import pickle
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gipo_envs.errors import UserError
from gipo_vla import train
from gipo_vla.checkpoint import folder as folders
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.run.start import newest_checkpoint

SECRET = "0123456789abcdef0123456789abcdef01234567"


class Bomb:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def own_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def run(tmp_path: Path, tiny_overrides: tuple[str, ...]) -> Path:
    """A run that was stopped after its first iteration."""
    train.train(train.resolve([*tiny_overrides, f"run_dir={tmp_path / 'run'}", "stop_after=1"]))
    return tmp_path / "run"


def replace_file(checkpoint: Path, name: str, content: bytes) -> None:
    """Put a file into a checkpoint as an attacker would, with its checksum in the manifest."""
    (checkpoint / name).write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest[name] = folders.record(checkpoint / name)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert folders.damage(checkpoint) is None


@pytest.mark.parametrize(
    "name",
    [
        "policy.safetensors",
        "optimizer.safetensors",
        "rank-00000/actor.safetensors",
        "rank-00000/random.safetensors",
        "rank-00000/replay/rewards.npy",
        "rank-00000/rank.json",
        "run.json",
    ],
)
def test_loads_refuse_pickles(run: Path, tmp_path: Path, name: str) -> None:
    exploded = tmp_path / "exploded"
    (checkpoint,) = (run / "checkpoints").glob("0*")
    bomb = pickle.dumps(Bomb(exploded))
    if name.endswith(".npy"):
        objects = np.empty(1, object)
        objects[0] = Bomb(exploded)
        np.save(checkpoint / name, objects, allow_pickle=True)
        bomb = (checkpoint / name).read_bytes()
    elif name == "policy.safetensors":
        torch.save(Bomb(exploded), checkpoint / name)
        bomb = (checkpoint / name).read_bytes()
    replace_file(checkpoint, name, bomb)
    with pytest.raises(Exception):  # noqa: B017  whatever it is, it is no success
        train.train(train.resolve([f"resume={run}"]))
    assert not exploded.exists()


def test_settings_execute_nothing(run: Path, tmp_path: Path) -> None:
    exploded = tmp_path / "exploded"
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(f"{text}bomb: !!python/object/apply:os.mkdir ['{exploded}']\n")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        train.resolve([f"resume={run}"])
    assert not exploded.exists()


def test_nothing_is_for_everybody_to_write(
    tmp_path: Path, tiny_overrides: tuple[str, ...], own_umask: None
) -> None:
    run = tmp_path / "new/run"
    train.main([*tiny_overrides, f"run_dir={run}", "iterations=1"])
    found = [run.parent, *run.parent.rglob("*")]
    assert len(found) > 30
    open_to_all = [path for path in found if path.stat().st_mode & stat.S_IWOTH]
    assert not open_to_all


def test_files_are_as_readable_as_the_umask_says(
    tmp_path: Path, tiny_overrides: tuple[str, ...], own_umask: None
) -> None:
    os.umask(0o027)
    train.main([*tiny_overrides, f"run_dir={tmp_path / 'run'}", "stop_after=1"])
    files = [path for path in (tmp_path / "run/checkpoints").rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}


@pytest.mark.medium
def test_no_secret_is_written_down(
    tmp_path: Path,
    tiny_overrides: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    run = tmp_path / "run"
    train.train(train.resolve([*tiny_overrides, f"run_dir={run}", "iterations=1", "telemetry.wandb=offline"]))
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err
    files = [path for path in run.rglob("*") if path.is_file()]
    assert any("wandb" in path.parts for path in files)
    leaking = [path for path in files if SECRET.encode() in path.read_bytes()]
    assert not leaking
    assert json.loads(next(run.glob("checkpoints/0*/run.json")).read_text())["tracker_id"], "to resume it"


def test_a_run_all_of_whose_checkpoints_are_damaged_is_refused(run: Path) -> None:
    (checkpoint,) = (run / "checkpoints").glob("0*")
    (checkpoint / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"no usable checkpoint .*run\.json has 2 bytes instead of"):
        newest_checkpoint(RunFolder(run))
    assert checkpoint.is_dir(), "and nothing is touched"
