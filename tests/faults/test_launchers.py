"""The launchers: what they say they would start, and a job that is stopped, requeued and finished."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import which

SCRIPTS = Path(__file__).parents[2] / "scripts"
NODE, SLURM = SCRIPTS / "launch_node.sh", SCRIPTS / "launch_slurm.sbatch"


def dry_run(script: Path, *arguments: str, **environment: str) -> list[str]:
    """The command that a launcher prints, as words."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", str(script), "--dry-run", *arguments],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "" and done.stdout.count("\n") == 1
    return shlex.split(done.stdout)


def test_one_node() -> None:
    words = dry_run(NODE, "experiment=point_reach", "env.task=[reach,push]", "run_dir=a b", RANKS="4")
    assert words[0] == "env" and "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in words
    assert {"--standalone", "--nproc-per-node=4", "--max-restarts=3"} < set(words)
    at = words.index("gipo_vla.train")
    assert words[at - 1 :] == [
        "-m",
        "gipo_vla.train",
        "experiment=point_reach",
        "env.task=[reach,push]",
        "run_dir=a b",
    ]


def test_one_rank_a_gpu(tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: H200 (UUID: a)'\necho 'GPU 1: H200 (UUID: b)'\n")
    smi.chmod(0o755)
    assert "--nproc-per-node=2" in dry_run(NODE, PATH=f"{tmp_path}:{os.environ['PATH']}")


def test_several_nodes(tmp_path: Path) -> None:
    words = dry_run(SLURM, "experiment=point_reach")
    assert words[0] == "srun" and "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in words
    assert words[-3:] == ["experiment=point_reach", "run_dir=runs/slurm-0", "resume=auto"]
    fake_slurm(tmp_path, "node17 node18")
    words = dry_run(
        SLURM,
        "run_dir=/shared/mine",
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        SLURM_JOB_ID="4711",
        SLURM_NNODES="4",
        SLURM_GPUS_ON_NODE="8",
        SLURM_JOB_NODELIST="node[17-20]",
        SLURM_RESTART_COUNT="2",
        SRUN_OPTIONS="--container-image=gipo_vla --mpi=none",
    )
    expected = {
        "--container-image=gipo_vla",
        "--mpi=none",
        "--nnodes=4",
        "--nproc-per-node=8",
        "--rdzv-backend=c10d",
        "--rdzv-id=4711-2",
        "--rdzv-endpoint=node17:24711",
    }
    assert expected < set(words)
    assert words[-2:] == ["run_dir=/shared/mine", "resume=auto"]


def fake_slurm(folder: Path, hosts: str = "localhost") -> None:
    """srun that starts its command here, scancel that signals it, scontrol that notes what it is asked."""
    for name, text in {
        "srun": f'while [[ $1 == -* ]]; do shift; done\necho $$ >{folder}/step\nexec "$@"',
        "scancel": f'[ "$1" = --signal=TERM ] && kill -TERM "$(cat {folder}/step)"',
        "scontrol": f'if [ "$1" = show ]; then printf "%s\\n" {hosts}; else echo "$@" >>{folder}/asked; fi',
    }.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)


@pytest.mark.medium
def test_a_preempted_job_is_requeued_and_finishes(
    launch: Callable[..., Any], tmp_path: Path, tiny_overrides: tuple[str, ...]
) -> None:
    fake_slurm(tmp_path)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_NNODES": "1",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_SUBMIT_DIR": str(SCRIPTS.parent),
        "RANKS_PER_NODE": "1",
    }
    job = ("bash", str(SLURM))
    settings = ("iterations=80", "telemetry.log_every=1000")
    first = launch(*settings, command=job, environment=environment)
    first.until_iteration(3)
    first.signal(signal.SIGTERM)  # what --signal=B:TERM@180 does
    first.wait(0)
    assert (tmp_path / "asked").read_text() == f"requeue {os.getpid()}\n"
    done = len(first.rows())
    assert done < 80 and not (first.folder / "finished.json").exists()
    second = launch(*settings, command=job, environment=environment | {"SLURM_RESTART_COUNT": "1"})
    second.wait(0)
    assert "resuming from" in second.log
    assert [row["iteration"] for row in second.rows()] == list(range(1, 81))
    assert (first.folder / "finished.json").exists()
    third = launch(*settings, command=job, environment=environment | {"SLURM_RESTART_COUNT": "2"})
    third.wait(0)
    assert "is finished: nothing to do" in third.log
    assert (tmp_path / "asked").read_text().count("requeue") == 1


@pytest.mark.skipif(which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_pass_shellcheck() -> None:
    scripts = sorted([*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("*.sbatch")])
    subprocess.run([str(which("shellcheck")), *map(str, scripts)], check=True)
