"""The launchers: what they say they would start, and a job that is stopped, requeued and finished."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gipo_vla.assembly import environment_spec
from gipo_vla.run.memory import GIB
from gipo_vla.run.plan import plan_run
from gipo_vla.settings import runs
from tests.conftest import needs_libero, which

SCRIPTS = Path(__file__).parents[2] / "scripts"
NODE, SLURM = SCRIPTS / "launch_node.sh", SCRIPTS / "launch_slurm.sbatch"


def dry_run(script: Path, *arguments: str, **environment: str) -> list[str]:
    """The one command that a launcher prints, as words."""
    (words,) = dry_lines(script, *arguments, **environment)
    return words


def dry_lines(script: Path, *arguments: str, complaint: str = "", **environment: str) -> list[list[str]]:
    """The commands that a launcher prints, as words, beside what it says on stderr."""
    inherited = os.environ.items()
    clean = {name: value for name, value in inherited if not name.startswith(("SLURM_", "CUDA_VISIBLE"))}
    done = subprocess.run(
        ["bash", str(script), "--dry-run", *arguments],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert complaint in done.stderr if complaint else done.stderr == ""
    return [shlex.split(line) for line in done.stdout.splitlines()]


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
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert "--nproc-per-node=2" in dry_run(NODE, PATH=path)
    for visible, ranks in {
        "1": 1,
        "GPU-6f0d1f1c, GPU-3b4e11aa,MIG-77": 3,
        "0,-1,1": 1,
        "": 1,  # none: one rank on the CPU
    }.items():
        assert f"--nproc-per-node={ranks}" in dry_run(NODE, PATH=path, CUDA_VISIBLE_DEVICES=visible)


def test_a_job_asks_for_what_its_ranks_use() -> None:
    asked, started = dry_lines(
        SLURM, "experiment=point_reach", "rollout.workers=4", RANKS_PER_NODE="4", PYTHON=sys.executable
    )
    assert asked[0] == "sbatch"
    assert {"--cpus-per-task=20", "--mem-per-cpu=4G", "--gpus-per-node=4"} < set(asked)
    assert asked[-3:] == ["scripts/launch_slurm.sbatch", "experiment=point_reach", "rollout.workers=4"]
    assert started[0] == "srun" and "--cpus-per-task=20" in started


def test_a_job_with_too_few_cores_says_so() -> None:
    few = {"RANKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "8", "PYTHON": sys.executable}
    _, started = dry_lines(SLURM, "experiment=point_reach", complaint="sbatch --cpus-per-task=12", **few)
    assert "--cpus-per-task=8" in started


def directives() -> dict[str, str]:
    """What launch_slurm.sbatch asks for by itself."""
    found = re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", SLURM.read_text(), re.MULTILINE)
    return dict(found)


@needs_libero
def test_the_directives_are_enough_for_the_large_experiments() -> None:
    ranks, cores = int(directives()["gpus-per-node"]), int(directives()["cpus-per-task"])
    memory = int(directives()["mem-per-cpu"].removesuffix("G")) * GIB
    for name in ("libero_spatial_oft7b", "libero_10_oft7b", "metaworld_mt10_oft7b"):
        settings = runs.load("train", [f"experiment={name}"])
        assert cores == ranks * (settings.rollout.workers + 1)
        need = plan_run(settings, environment_spec(settings), ranks, "cuda").memory
        assert ranks * (need.host + need.replay) <= cores * memory  # a checkpoint copies the replay


def test_several_nodes(tmp_path: Path) -> None:
    _, words = dry_lines(SLURM, "experiment=point_reach", PYTHON="no-such-interpreter")
    assert "--cpus-per-task=136" in words
    assert words[0] == "srun" and "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in words
    assert words[-3:] == ["experiment=point_reach", "run_dir=runs/slurm-0", "resume=auto"]
    fake_slurm(tmp_path, "node17 node18")
    _, words = dry_lines(
        SLURM,
        "run_dir=/shared/mine",
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        PYTHON="no-such-interpreter",
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


@pytest.mark.slow
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
