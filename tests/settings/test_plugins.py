"""Modules of a user's: imported when they are named on the command line, never because a folder names
them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gipo_envs.errors import UserError
from gipo_vla.settings import plugins
from gipo_vla.settings.runs import load, override, read_run, to_yaml

HERE = Path(__file__).parent
PLUGIN = "my_plugin"
TINY = ("experiment=point_reach", "env=my_points", "env.task=reach", "iterations=2", "learner.updates=1",
        "eval.episodes_per_task=2", "telemetry.wandb=off", "telemetry.report=false")  # fmt: skip


@pytest.fixture(autouse=True)
def plugin_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    yield
    os.environ.pop(plugins.VARIABLE, None)


def test_what_a_plugin_registers_is_composed_checked_and_overridden() -> None:
    settings = load("train", [f"plugins=[{PLUGIN}]", "objective=constant_weight", "objective.weight=0.25"])
    assert (settings.objective.name, settings.objective.weight) == ("constant_weight", 0.25)
    assert settings.plugins == (PLUGIN,)
    assert override(settings, ["objective=ppo"]).objective.name == "ppo"
    assert override(settings, ["objective.weight=2"]).objective.weight == 2
    far = load("train", [f"plugins=[{PLUGIN}]", "experiment=point_reach", "env=my_far_points"])
    assert (far.env.family, far.env.task) == ("my_points", "reach-far")
    for wrong, message in (
        ("objective.wight=1", r"objective\.weight"),
        ("objective.weight=heavy", r"objective\.weight is 'heavy'"),
    ):
        with pytest.raises(UserError, match=message):
            load("train", [f"plugins=[{PLUGIN}]", "objective=constant_weight", wrong])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_anywhere", "cannot be imported"),
        ("broken_plugin", "raises ZeroDivisionError"),
        ("plugin_in_need", "it needs no_such_dependency"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_one_line(tmp_path: Path, name: str, message: str,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    (tmp_path / "plugin_in_need.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        load("train", [f"plugins=[{name}]"])
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_folder_makes_nothing_be_imported(tmp_path: Path) -> None:
    settings = load("train", [f"plugins=[{PLUGIN}]", "objective=constant_weight"])
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    (tmp_path / "evil.yaml").write_text(to_yaml(settings).replace(PLUGIN, "antigravity"))
    os.environ.pop(plugins.VARIABLE)
    with pytest.raises(UserError, match=rf"plugins=\[{PLUGIN}\]"):
        read_run(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="antigravity"):
        read_run(tmp_path / "evil.yaml")
    assert "antigravity" not in sys.modules
    os.environ[plugins.VARIABLE] = PLUGIN
    assert read_run(tmp_path / "config.yaml") == settings


def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path} | (environment or {}),
    )


@pytest.mark.slow
def test_a_plugin_is_trained_resumed_evaluated_and_explained(tmp_path: Path) -> None:
    """Its simulator runs in worker processes; its objective trains; its help and its errors are like any
    other's."""
    folder = tmp_path / "run"
    named = f"plugins=[{PLUGIN}]"
    own = ("objective=constant_weight", "objective.weight=0.3", f"run_dir={folder}")
    done = run("gipo_vla.train", named, *TINY, *own, "stop_after=1")
    assert done.returncode == 0, done.stderr
    refused = run("gipo_vla.train", f"resume={folder}")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and named in refused.stderr
    done = run("gipo_vla.train", f"resume={folder}", named)
    assert done.returncode == 0 and (folder / "finished.json").exists(), done.stderr
    done = run("gipo_vla.evaluate", f"checkpoint={folder}", environment={plugins.VARIABLE: PLUGIN})
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1])["episodes"] == 2, done.stderr
    told = run("gipo_vla.train", named, "--help", "objective.weight")
    assert "The coefficient of every token." in told.stdout
    wrong = run("gipo_vla.train", named, "objective=constant_weigth")
    assert wrong.returncode == 2 and "constant_weight" in wrong.stderr
