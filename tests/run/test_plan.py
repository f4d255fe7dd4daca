"""What is planned of a run, and what runs measure of it, each by the command in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gipo_envs.errors import UserError
from gipo_vla.assembly import environment_spec
from gipo_vla.run.plan import Measured, RunPlan, mean_after, plan_run
from gipo_vla.settings import runs
from gipo_vla.telemetry.console import console
from tests.conftest import MakeConfig, which

CPU = torch.device("cpu")
SHORT = (
    *("eval.episodes_per_task=2", "eval.every_env_steps=null", "eval.video=false"),
    *("telemetry.wandb=off", "telemetry.report=false"),
)
TWO_RANKS = ("rollout.workers=1", "rollout.envs_per_worker=16", "learner.micro_batch_segments=16")
"""The default experiment's environments and batches, shared by two ranks."""


def plan_of(*overrides: str, world: int = 1) -> RunPlan:
    settings = runs.load("train", overrides)
    return plan_run(settings, environment_spec(settings), world, CPU)


def finished(folder: Path, *overrides: str, ranks: int = 1) -> dict[str, Any]:
    """The plan in finished.json of a run on a CPU."""
    launch = [sys.executable, "-m", "gipo_vla.train"]
    if ranks > 1:
        torchrun = which("torchrun")
        assert torchrun is not None
        launch = [torchrun, "--standalone", f"--nproc-per-node={ranks}", "-m", "gipo_vla.train"]
    command = [*launch, "learner.device=cpu", f"run_dir={folder}", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "planned and measured" in done.stderr
    told: dict[str, Any] = json.loads((folder / "finished.json").read_text())["plan"]
    return told


@pytest.mark.parametrize(
    ("overrides", "ranks"),
    [
        pytest.param(("iterations=14", *SHORT), 1, id="default", marks=pytest.mark.medium),
        pytest.param(("iterations=14", *TWO_RANKS, *SHORT), 2, id="two ranks", marks=pytest.mark.slow),
        pytest.param(
            ("experiment=metaworld_oft_tiny", "iterations=10", "replay.capacity=1024", *SHORT),
            1,
            id="tiny VLA",
            marks=pytest.mark.slow,
        ),
        pytest.param(SHORT, 1, id="the whole default run", marks=pytest.mark.slow),
    ],
)
def test_a_run_measures_what_was_planned(tmp_path: Path, overrides: tuple[str, ...], ranks: int) -> None:
    told = finished(tmp_path / "run", *overrides, ranks=ranks)
    plan = plan_of(f"run_dir={tmp_path / 'run'}", "learner.device=cpu", *overrides, world=ranks)
    assert told["predicted"] == json.loads(json.dumps(plan.predicted()))
    predicted, measured = told["predicted"], told["measured"]
    for name in ("mean_lag_iterations", "mean_lag_updates"):
        assert measured[name] == pytest.approx(predicted[name], rel=0.05), name
    for name in ("process_bytes", "worker_bytes"):
        assert measured[name] == pytest.approx(predicted[name], rel=0.10), name
    assert measured["updates"] == predicted["updates"]
    assert measured["env_steps"] == pytest.approx(predicted["env_steps"], rel=0.05)
    assert measured["training_seconds"] > 0 and predicted["training_seconds"] > 0
    assert measured["device_bytes"] is None and predicted["device_bytes"] is None


# --------------------------------------------------------------------------------------------------- sizes


def test_ranks_share_what_is_global() -> None:
    """With the same environments in all, two ranks collect and draw the same data as one."""
    alone, shared = plan_of(), plan_of(*TWO_RANKS, world=2)
    assert alone.collection is not None and shared.collection is not None
    assert alone.collection.steps == shared.collection.steps == 50
    assert alone.lag is not None and shared.lag is not None
    assert shared.lag.mean_iterations == pytest.approx(alone.lag.mean_iterations)
    assert alone.env_steps == shared.env_steps == 101 * 3200
    assert shared.memory.micro_batch == alone.memory.micro_batch // 2
    assert shared.memory.replay <= alone.memory.replay // 2 + 1000


def test_groups_wait_for_their_episodes() -> None:
    groups = ("experiment=metaworld_sparse", "init_from=null")
    alone, grouped = plan_of(*groups), plan_of(*groups, "credit=group")
    assert alone.lag is not None and grouped.lag is not None
    assert grouped.lag.mean_iterations > alone.lag.mean_iterations + 0.3


def test_cloning_is_planned_as_well() -> None:
    settings = runs.load_sft([])
    plan = plan_run(settings, environment_spec(settings), 1, CPU)
    assert plan.updates == 600 and plan.collection is None and plan.lag is None
    assert plan.memory.micro_batch == 128 and plan.memory.replay == 0
    assert plan.duration.training > 0 and list(plan.rows()) == ["estimated time"]


def test_the_rows_of_the_table_say_what_is_planned() -> None:
    rows = plan_of().rows()
    assert rows["expected lag"].startswith("mean 2.8 iterations (135 updates), greatest 5 (269)")
    assert rows["expected lag"].endswith("every transition is used 7.7 times")
    shared = plan_of("learner.policy_every=2").rows()["expected lag"]
    assert "(135 updates, 67 of the policy)" in shared
    assert shared.endswith("used 7.7 times, 3.8 by the policy")
    assert rows["replay"].startswith("6,400 transitions = 4.0 iterations")
    assert rows["env steps"] == "323,200 in 100 iterations"


def test_what_could_never_be_drawn_is_refused(make_config: MakeConfig) -> None:
    for overrides, named in (
        (("replay.segment_length=100", "replay.capacity=6400"), "replay.segment_length is 100"),
        (("replay.memory_limit_gb=1e-6",), "replay.memory_limit_gb is 1e-06"),
        (("replay.max_lag=1", "learner.updates=3"), "replay.max_lag is 1"),
    ):
        settings = make_config(*overrides)
        with pytest.raises(UserError, match=named):
            plan_run(settings, environment_spec(settings), 1, CPU)


def test_what_was_measured_stands_beside_each_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of()
    console.print(plan.compare(Measured(env_steps=plan.env_steps, mean_lag_iterations=2.5, updates=4800)))
    table = capsys.readouterr().err
    lines = {line.split("│")[1].strip(): line for line in table.splitlines() if line.startswith("│")}
    assert "323,200" in lines["env steps"] and "+0.0%" in lines["env steps"]
    assert "2.80" in lines["mean lag (iterations)"] and "-10.7%" in lines["mean lag (iterations)"]
    assert lines["workers"].split("│")[3].strip() == "-"


def test_lag_is_measured_once_the_replay_is_full() -> None:
    rows = [{"iteration": n, "lag": None if n == 1 else float(n)} for n in range(1, 7)]
    assert mean_after(rows, "lag", 4) == 5.5
    assert mean_after(rows, "lag", 6) is None
