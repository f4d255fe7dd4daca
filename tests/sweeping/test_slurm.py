"""The Slurm launcher, without a Slurm: what it would submit, and what a task does."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "sweep_slurm.sbatch"
PYTHON = """#!/bin/bash
# Stands in for .venv/bin/python in a task.
echo "$@" >> calls
case "$*" in
    *fail*) exit 1 ;;
    *forever*)
        trap 'sleep 0.3; echo saved >> calls; exit 143' TERM
        touch ready
        while :; do sleep 0.05; done ;;
esac
"""
SCONTROL = """#!/bin/bash
echo "scontrol $@" >> calls
"""


def script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_dry_run_shows_the_array_of_all_jobs() -> None:
    overrides = ["experiment=point_reach", "objective=gipo,ppo", "objective.sigma=0.5,1", "seed=0,1"]
    done = script("--dry-run", "--at-once", "4", "--cpus-per-task=8", "--", *overrides)
    assert done.returncode == 0, done.stderr
    assert shlex.split(done.stdout) == [
        "sbatch",
        "--array=1-6%4",
        "--cpus-per-task=8",
        str(SCRIPT),
        *overrides,
    ]
    assert "expected lag" in done.stderr


@pytest.mark.parametrize(
    "arguments, named",
    [
        ((), "after -- come the arguments"),
        (("--dry-run", "seed=0"), "put -- between"),
    ],
)
def test_mistakes_submit_nothing(arguments: tuple[str, ...], named: str) -> None:
    done = script(*arguments)
    assert done.returncode == 2
    assert named in done.stderr


@pytest.fixture
def task(tmp_path: Path) -> dict[str, str]:
    """The environment of task 3 of 7 in a project of stand-ins."""
    for path, text in ((".venv/bin/python", PYTHON), ("bin/scontrol", SCONTROL)):
        file = tmp_path / path
        file.parent.mkdir(parents=True)
        file.write_text(text)
        file.chmod(0o755)
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_ARRAY_JOB_ID": "11",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_COUNT": "7",
    }


def test_a_task_runs_its_part(task: dict[str, str], tmp_path: Path) -> None:
    assert script("sweep=paper_metaworld", "a=b c", **task).returncode == 0
    assert (tmp_path / "calls").read_text() == "-m gipo_vla.sweep sweep=paper_metaworld a=b c part=3/7\n"
    assert script("fail", **task).returncode == 1


def test_a_task_whose_time_is_up_saves_and_queues_itself_again(task: dict[str, str], tmp_path: Path) -> None:
    process = subprocess.Popen([str(SCRIPT), "forever"], env={**os.environ, **task})
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert (tmp_path / "calls").read_text().splitlines()[1:] == ["saved", "scontrol requeue 11_3"]
