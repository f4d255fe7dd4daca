"""SIGTERM and SIGINT: save at the next update boundary, and leave nothing behind."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from gipo_vla.train import resolve, train

# Many updates an iteration, so that a signal falls between two of them.
LONG = ("iterations=40", "learner.updates=20", "rollout.env_steps=320")


def straight(tmp_path: Any, tiny_overrides: tuple[str, ...], iterations: int) -> bytes:
    """metrics.jsonl of a run that nobody disturbed."""
    folder = tmp_path / "straight"
    train(resolve([*tiny_overrides, *LONG, f"run_dir={folder}", f"stop_after={iterations}"]))
    return (folder / "metrics.jsonl").read_bytes()


@pytest.mark.medium
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_had_been(
    launch: Callable[..., Any],
    going_on: Callable[..., Any],
    tmp_path: Any,
    tiny_overrides: tuple[str, ...],
    number: signal.Signals,
) -> None:
    run = launch(*LONG)
    run.until_iteration(2)
    run.signal(number)
    run.wait(0)
    assert run.log.count(f"{number.name}: saving after this update, then leaving") == 1
    assert f"resume it with resume={run.folder}" in run.log
    assert not (run.folder / "finished.json").exists()
    done = len(run.rows())
    iteration, updates = map(int, run.checkpoints[-1].split("-"))
    assert iteration == done and updates >= 20 * done
    train(resolve([f"resume={run.folder}", f"stop_after={done + 2}"]))
    assert (run.folder / "metrics.jsonl").read_bytes() == straight(tmp_path, tiny_overrides, done + 2)


@pytest.mark.medium
def test_a_second_interrupt_leaves_at_once(launch: Callable[..., Any]) -> None:
    run = launch("iterations=100000", "checkpoint.every_iterations=2")
    run.until_iteration(4)
    run.until(lambda: run.checkpoints, "a checkpoint")
    run.signal(signal.SIGSTOP, run.workers()[0])  # so that no update boundary can be reached
    run.signal(signal.SIGINT)
    run.until(lambda: "SIGINT: saving" in run.log, "the answer to the first interrupt")
    run.signal(signal.SIGINT)
    run.wait(130)
    assert "leaving at once" in run.log and "Traceback" not in run.log
    train(resolve([f"resume={run.folder}", f"stop_after={len(run.rows()) + 1}"]))
    assert [row["iteration"] for row in run.rows()] == list(range(1, len(run.rows()) + 1))


@pytest.mark.slow
def test_torchrun_told_to_stop_saves_on_all_ranks(
    launch: Callable[..., Any], going_on: Callable[..., Any], tmp_path: Any
) -> None:
    run = launch(*LONG, ranks=2)
    run.until_iteration(2)
    run.signal(signal.SIGTERM)
    run.wait(None)  # torchrun says 1 whatever its ranks say
    assert run.log.count("saving after this update") == 1, "rank 0 speaks for all"
    assert "died with exit status" not in run.log, "its workers live until it has saved"
    done = len(run.rows())
    going_on(run, f"stop_after={done + 1}", ranks=2)
    straight = launch(*LONG, f"stop_after={done + 1}", ranks=2, folder=tmp_path / "straight")
    straight.wait()
    assert run.rows() == straight.rows()


@pytest.mark.slow
def test_ranks_whose_torchrun_was_killed_save_and_leave(launch: Callable[..., Any]) -> None:
    run = launch("iterations=100000", "telemetry.log_every=1000", ranks=2)
    run.until_iteration(2)
    ranks = run.ranks()
    assert len(ranks) == 2
    run.signal(signal.SIGKILL)
    run.wait(-9)
    run.leave_behind_nothing()
    iteration = int(run.checkpoints[-1].split("-")[0])
    assert iteration == len(run.rows())
