"""What the examples register is trained, resumed, evaluated, swept, reported and explained."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.examples.conftest import ROOT, run

SHORT = (
    "iterations=2",
    "rollout.workers=1",
    "rollout.envs_per_worker=4",
    "rollout.env_steps=160",
    "replay.capacity=640",
    "learner.updates=2",
    "learner.batch_segments=4",
    "eval.episodes_per_task=2",
    "eval.video=false",
    "telemetry.wandb=off",
    "telemetry.report=false",
)


@dataclass(frozen=True)
class Plugin:
    """How a user names an example and what it registers."""

    chosen: tuple[str, ...]
    """Arguments that choose it."""
    varied: str
    """A setting with two values."""


PLUGINS = {
    "own_objective": Plugin(("experiment=point_reach", "objective=soft_truncation"), "objective.limit=1,4"),
    "own_credit": Plugin(("experiment=point_reach", "credit=leave_one_out"), "credit.horizon=5,20"),
    "own_policy": Plugin(("experiment=point_pixels",), "policy.channels=2,4"),
    "own_simulator": Plugin(("experiment=puck",), "env.reward=dense,sparse"),
}


@pytest.mark.parametrize(
    "name",
    [
        # One by default, the others too with --slow: each starts eight processes.
        pytest.param(name, marks=pytest.mark.medium if name == "own_simulator" else pytest.mark.slow)
        for name in PLUGINS
    ],
)
def test_trained_resumed_evaluated_swept_and_reported(name: str, tmp_path: Path) -> None:
    plugin, named, folder = PLUGINS[name], f"plugins=[examples.{name}]", tmp_path / "run"

    done = run("-m", "gipo_vla.train", named, *plugin.chosen, *SHORT, f"run_dir={folder}", "stop_after=1")
    assert done.returncode == 0, done.stderr
    refused = run("-m", "gipo_vla.train", f"resume={folder}")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and named in refused.stderr
    done = run("-m", "gipo_vla.train", f"resume={folder}", named)
    assert done.returncode == 0 and (folder / "finished.json").exists(), done.stderr
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2]
    assert all(row["learner/skipped_total"] == 0 for row in rows)

    done = run("-m", "gipo_vla.evaluate", f"checkpoint={folder}", plugin=f"examples.{name}")
    assert done.returncode == 0, done.stderr
    own = json.loads((folder / "evaluation.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1])["success_once"] == own["success_once"]

    sweep = tmp_path / "sweep"
    done = run("-m", "gipo_vla.sweep", named, *plugin.chosen, *SHORT, plugin.varied, f"sweep_dir={sweep}")
    assert done.returncode == 0, done.stderr
    assert len(list(sweep.glob("**/finished.json"))) == 2
    done = run("-m", "gipo_vla.report", str(sweep))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    key, _, values = plugin.varied.partition("=")
    assert told["varied"] == [key] and told["runs"] == 2
    for value, row in zip(values.split(","), told["configurations"], strict=True):
        assert value in row["configuration"].split()


@pytest.mark.slow
def test_every_setting_has_help_and_errors_name_the_nearest() -> None:
    """All examples at once: plugins do not get into each other's way."""
    named = f"plugins=[{','.join(f'examples.{name}' for name in PLUGINS)}]"
    told = run("-m", "gipo_vla.train", named, "--help", "objective.limit")
    assert "Largest coefficient of a token" in told.stdout, told.stderr
    for option, wrong, nearest in (
        ("objective=soft_truncation", "objective.limits=1", "objective.limit"),
        ("credit=leave_one_out", "credit.horizn=3", "credit.horizon"),
        ("experiment=puck", "env.task=nera", "near"),
    ):
        refused = run("-m", "gipo_vla.train", named, "experiment=point_reach", option, wrong)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1
        assert nearest in refused.stderr, refused.stderr
    refused = run("-m", "gipo_vla.train", named, "policy=convolutionl")
    assert refused.returncode == 2 and "convolutional" in refused.stderr


def test_nothing_outside_an_example_knows_of_it() -> None:
    """Adding one touches its own file and its test."""
    # Quoted, because instructions and the tiny tokenizer know the pucks of Meta-World.
    words = re.compile(
        r"soft_?truncation|leave_?one_?out|convolutional_?(policy|settings)|[\"']puck[\"']", re.I
    )
    for folder in ("gipo_vla", "envs", "configs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml"):
                assert path.stem != "puck" and not words.search(path.read_text()), path


@pytest.mark.medium
def test_the_simulator_example_learns(tmp_path: Path) -> None:
    done = run("-m", "gipo_vla.train", "plugins=[examples.own_simulator]", "experiment=puck",
               f"run_dir={tmp_path / 'run'}", "telemetry.report=false")  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["success_once"] < 0.3 and rows[-1]["success_once_recent"] > 0.8
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["success_once"] > 0.9
