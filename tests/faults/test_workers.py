"""Simulator workers that are killed or hang under a training run."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from gipo_vla.rollout.faults import FaultWindow

TWO_WORKERS = ("rollout.workers=2", "rollout.envs_per_worker=2", "rollout.worker_timeout_s=2")


def test_faults_leave_the_window_with_their_iteration() -> None:
    window = FaultWindow(limit=2, iterations=3, total=5)
    assert window.count(7) == 2 and not window.exceeded(7) and window.exceeded(8)
    window.end_iteration(7)
    window.end_iteration(7)
    assert window.exceeded(8)
    window.end_iteration(7)  # the first of four iterations goes, and its two faults with it
    assert window.count(8) == 1


def the_other_replaced(run: Any, pid: int) -> Callable[[], bool]:
    return lambda: pid not in run.workers() and len(run.workers()) == 2


@pytest.mark.medium
def test_killed_and_hung_workers_are_replaced_and_counted(launch: Callable[..., Any]) -> None:
    run = launch(*TWO_WORKERS, "iterations=100000", "telemetry.log_every=1000")
    run.until_iteration(2)
    killed = run.workers()[0]
    run.signal(signal.SIGKILL, killed)
    run.until(the_other_replaced(run, killed), "a new worker for the killed one")
    hung = run.workers()[0]
    run.signal(signal.SIGSTOP, hung)
    run.until(the_other_replaced(run, hung), "a new worker for the hung one")
    run.until(lambda: run.rows()[-1]["rollout/worker_faults"] == 2, "both faults in the metrics")
    seen = len(run.rows())
    run.until_iteration(seen + 2)
    run.signal(signal.SIGTERM)
    run.wait()
    assert not psutil.pid_exists(hung), "nor does the stopped process stay"
    assert "worker 0 died with exit status -9; it is replaced" in run.log
    assert "hung; it is replaced" in run.log
    rows = run.rows()
    assert [row["rollout/worker_faults"] for row in rows] == sorted(
        row["rollout/worker_faults"] for row in rows
    )
    assert 1 <= rows[-1]["rollout/dropped_segments"] <= 4, "one a simulator at most"


@pytest.mark.medium
def test_too_many_faults_in_a_window_stop_the_run_with_a_checkpoint(
    launch: Callable[..., Any], going_on: Callable[..., Any]
) -> None:
    run = launch(*TWO_WORKERS, "iterations=100000", "rollout.max_worker_faults=1")
    run.until_iteration(2)
    first, second = run.workers()
    run.signal(signal.SIGKILL, first)
    run.signal(signal.SIGKILL, second)
    run.wait(1)
    (line,) = [line for line in run.log.splitlines() if line.startswith("error: ")]
    assert "2 simulator workers of one rank died or hung within 20 iterations" in line
    assert "rollout.max_worker_faults is 1" in line and f"resume it with resume={run.folder}" in line
    assert "Traceback" not in run.log
    done = len(run.rows())
    assert int(run.checkpoints[-1].split("-")[0]) == done
    assert not (run.folder / "finished.json").exists()
    continued = going_on(run, f"stop_after={done + 2}")
    assert [row["iteration"] for row in continued.rows()] == list(range(1, done + 3))


@pytest.mark.slow
def test_a_worker_that_cannot_be_kept_alive_stops_the_run_with_a_checkpoint(
    launch: Callable[..., Any],
) -> None:
    run = launch(*TWO_WORKERS, "iterations=100000", "rollout.max_worker_faults=100")
    run.until_iteration(2)
    other = run.workers()[1]
    while run.process.poll() is None:  # the first worker and whatever comes in its place
        for pid in set(run.workers()) - {other}:
            try:
                run.signal(signal.SIGKILL, pid)
            except ProcessLookupError:
                continue
    run.wait(1)
    assert "times in a row" in run.log and "Traceback" not in run.log
    assert int(run.checkpoints[-1].split("-")[0]) == len(run.rows())
