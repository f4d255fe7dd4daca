"""``gipo_vla.evaluate`` as a command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gipo_vla.run.resume import Start
from gipo_vla.train import train


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gipo_vla.settings import runs
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("evaluate") / "run"
    return train(Start(runs.load("train", [*TINY, f"run_dir={folder}"]), None))


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_evaluating_a_finished_run_repeats_its_own_evaluation(run_folder: Path, tmp_path: Path) -> None:
    done = command("gipo_vla.evaluate", f"checkpoint={run_folder}", f"out={tmp_path / 'again.json'}")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout.splitlines()[-1])
    assert again == json.loads((tmp_path / "again.json").read_text())
    assert again == json.loads((run_folder / "evaluation.json").read_text())


def test_two_checkpoints_on_the_same_states(run_folder: Path, tmp_path: Path) -> None:
    """A policy and itself: nothing differs. And the other one's policy is what plays second."""
    done = command("gipo_vla.evaluate", f"checkpoint={run_folder}", f"versus={run_folder}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    alone = json.loads((run_folder / "evaluation.json").read_text())
    assert {name: value for name, value in found.items() if name != "versus"} == alone
    assert found["versus"]["evaluation"] == alone
    for mode in ("greedy", "sampled"):
        assert found["versus"]["paired"][mode]["difference"] == 0
        assert found["versus"]["paired"][mode]["p_value"] == 1
    done = command("gipo_vla.evaluate", f"checkpoint={run_folder}", f"versus={tmp_path / 'nowhere'}")
    assert done.returncode == 2 and "nowhere is no folder" in done.stderr


def test_settings_of_the_run_can_be_overridden(run_folder: Path) -> None:
    done = command("gipo_vla.evaluate", f"checkpoint={run_folder}", "eval.episodes_per_task=3")
    assert json.loads(done.stdout)["episodes"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "checkpoint is missing"),
        (("checkpoint=nowhere",), "checkpoint=nowhere is no folder"),
        (("checkpoint=RUN", "env.tsk=reach"), "unknown setting 'env.tsk'; nearest: env.task"),
        (("checkpoint=RUN", "env.task=reech"), "env: unknown task 'reech'; nearest: reach"),
    ],
)
def test_mistakes_give_one_line(run_folder: Path, arguments: tuple[str, ...], message: str) -> None:
    done = command("gipo_vla.evaluate", *(text.replace("RUN", str(run_folder)) for text in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_damaged_checkpoint_is_refused_by_name(run_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    (checkpoint,) = (path for path in (copy / "checkpoints").iterdir() if path.is_dir())
    damaged = bytearray((checkpoint / "policy.safetensors").read_bytes())
    damaged[-1] ^= 1
    (checkpoint / "policy.safetensors").write_bytes(damaged)
    done = command("gipo_vla.evaluate", f"checkpoint={copy}")
    assert done.returncode == 2
    assert "policy.safetensors" in done.stderr
