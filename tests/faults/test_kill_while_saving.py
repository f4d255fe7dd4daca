"""Whenever a process is killed while it saves, the run can be resumed."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gipo_vla.benchmarks.soak.judgement import leftovers
from gipo_vla.train import resolve, train

SAVER = Path(__file__).with_name("saver.py")
DIES_REMOVING = Path(__file__).with_name("dies_removing.py")
TRIALS = 48


@pytest.mark.medium
def test_killed_at_random_instants_of_a_save(launch: Callable[..., Any], tmp_path: Path) -> None:
    random_instants = random.Random(0)
    # In saves; some far enough on for earlier checkpoints to be there.
    instants = [random_instants.uniform(0.0, 4.0 if trial % 3 == 0 else 1.0) for trial in range(TRIALS)]
    run = launch(script=SAVER, argument=str(tmp_path), stdin="".join(f"{instant}\n" for instant in instants))
    run.wait()
    results = [json.loads(line) for line in run.log.splitlines() if line.startswith("{")]
    assert len(results) == TRIALS
    assert all(result["valid"] for result in results)
    # What a timed kill falls into is the machine's affair; the others fall where the seed says.
    placed = [result for result in results if not result["timed"]]
    cut_short = sum(result["leftovers"] > 0 for result in placed)
    assert cut_short >= 20, f"only {cut_short} of {len(placed)} kills fell into a save"
    assert max(result["complete"] for result in placed) >= 2, "and some came after complete ones"


@pytest.mark.medium
def test_killed_between_the_last_checkpoint_and_removing_the_one_before(launch: Callable[..., Any]) -> None:
    """The resumed run has nothing to save, and must tidy up all the same."""
    keeping = ("checkpoint.every_iterations=1", "checkpoint.keep=1")
    run = launch(*keeping, script=DIES_REMOVING, argument=".removed-000001-0000002")
    run.wait(-signal.SIGKILL)
    assert run.checkpoints == ["000002-0000004"], "the last one has its name"
    assert leftovers(run.folder) == ["checkpoints/.removed-000001-0000002 was left behind"]
    (run.folder / ".metrics.jsonl.tmp").touch()  # as one who was killed while he replaced a file
    train(resolve([f"resume={run.folder}"]))
    assert (run.folder / "finished.json").exists() and run.checkpoints == ["000002-0000004"]
    assert leftovers(run.folder) == []


@pytest.mark.slow
def test_a_training_run_killed_again_and_again_arrives(launch: Callable[..., Any], tmp_path: Path) -> None:
    """resume=auto, as a scheduler that requeues would start it, killed while it saves at every iteration."""
    settings = ("iterations=100000", "checkpoint.every_iterations=1", "telemetry.log_every=1000")
    random_waits = random.Random(1)
    for goal in (3, 6):
        run = launch(*settings, "resume=auto")
        run.until_iteration(goal)
        run.until(lambda: (run.folder / "checkpoints/latest").exists(), "a checkpoint")  # noqa: B023
        run.pause(random_waits.uniform(0.0, 0.2))
        run.signal(signal.SIGKILL)
        run.wait(-9)
    last = launch(*settings, "resume=auto", "stop_after=12")
    last.wait()
    assert "resuming from" in last.log
    straight = launch(*settings, "stop_after=12", folder=tmp_path / "straight")
    straight.wait()
    assert last.rows() == straight.rows()
