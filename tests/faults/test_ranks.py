"""Ranks that are killed, raise, cannot write, or have too little to learn from."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("sick_rank.py")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_rank_restarts_from_the_last_good_checkpoint(
    launch: Callable[..., Any], tmp_path: Path, victim: int
) -> None:
    settings = ("iterations=200", "checkpoint.every_iterations=4", "telemetry.log_every=1000")
    run = launch(*settings, "stop_after=24", ranks=2, torchrun=("--max-restarts=1",))
    run.until(lambda: run.checkpoints, "a checkpoint")
    before = run.ranks()
    run.signal(signal.SIGKILL, before[victim])
    run.wait()
    assert "resuming from" in run.log
    assert [row["iteration"] for row in run.rows()] == list(range(1, 25))
    straight = launch(*settings, "stop_after=24", ranks=2, folder=tmp_path / "straight")
    straight.wait()
    assert run.rows() == straight.rows(), "nothing was lost but time"


@pytest.mark.medium
def test_a_rank_that_raises_takes_all_others_with_it(launch: Callable[..., Any]) -> None:
    run = launch("iterations=100000", ranks=2, script=SCRIPT, environment={"SICK": "raise"})
    run.wait(1)
    assert "RuntimeError: this rank is sick" in run.log
    assert len(run.rows()) == 3


@pytest.mark.slow
def test_a_rank_that_cannot_write_costs_checkpoints_but_not_the_run(launch: Callable[..., Any]) -> None:
    settings = ("iterations=5", "checkpoint.every_iterations=1", "checkpoint.keep=9")
    run = launch(*settings, ranks=2, script=SCRIPT, environment={"SICK": "disk"})
    run.wait()
    assert run.log.count("warning: no checkpoint could be written (rank 1: [Errno 28]") == 2
    assert [row["iteration"] for row in run.rows()] == [1, 2, 3, 4, 5]
    assert [name.split("-")[0] for name in run.checkpoints] == ["000001", "000004", "000005"]
    assert not list(run.folder.glob("checkpoints/.*")), "what had been written is gone"
    assert (run.folder / "finished.json").exists()


@pytest.mark.medium
def test_a_rank_with_too_little_to_draw_makes_all_collect_more(launch: Callable[..., Any]) -> None:
    run = launch("iterations=3", ranks=2, script=SCRIPT, environment={"SICK": "hungry"})
    run.wait()
    steps = [row["env_steps"] for row in run.rows()]
    assert [row["updates"] for row in run.rows()] == [2, 4, 6]
    assert steps[1] - steps[0] == 3 * 160, "two rounds more than an iteration collects, on both ranks"


@pytest.mark.slow
def test_a_lag_limit_that_starves_the_learner_ends_the_run_by_name(launch: Callable[..., Any]) -> None:
    run = launch(
        "iterations=100000",
        "learner.updates=4",
        "replay.max_lag=3",
        "rollout.sync_every=8",  # the behaviour policy stays at version 0: what it collects is soon too old
        "rollout.max_collection_rounds=3",
        ranks=2,
    )
    run.wait(1)  # torchrun's status; the ranks' own is 2
    (line,) = [line for line in run.log.splitlines() if line.startswith("error: ")]
    assert "raise replay.max_lag (3)" in line
    assert "exitcode  : 2" in run.log
