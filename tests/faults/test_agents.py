"""Two torchruns, as on two machines: what becomes of one when the other is killed or cut off."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import psutil
import pytest


def start_two(launch: Callable[..., Any], *overrides: str) -> list[Any]:
    """The torchruns of one run of two ranks, the first of which keeps their store."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    agent = (sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1")
    agent += ("--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=two")
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    settings = ("iterations=100000", "telemetry.log_every=1000", "rollout.envs_per_worker=2", *overrides)
    return [
        launch(*settings, command=(*agent, keeps_store, "-m", "gipo_vla.train"), environment=environment)
        for keeps_store in ("--rdzv-conf=is_host=1", "--rdzv-conf=is_host=0")
    ]


def own_rank(agent: Any) -> int:
    """The training process that a torchrun started."""
    (child,) = psutil.Process(agent.process.pid).children()
    return child.pid


def errors(agent: Any) -> list[str]:
    return [line for line in agent.log.splitlines() if line.startswith("error: ")]


@pytest.mark.medium
def test_ranks_save_and_the_other_leaves_when_one_is_killed(launch: Callable[..., Any]) -> None:
    staying, killed = start_two(launch)
    staying.until_iteration(2)
    killed.signal(signal.SIGKILL)
    killed.wait(-9)
    staying.wait(1)
    staying.leave_behind_nothing()
    for agent in (staying, killed):
        (line,) = errors(agent)
        assert "a torchrun of this run was killed" in line and f"resume={agent.folder}" in line
    assert int(staying.checkpoints[-1].split("-")[0]) == len(staying.rows())


@pytest.mark.slow
def test_the_other_leaves_after_the_stated_time_when_one_is_cut_off(launch: Callable[..., Any]) -> None:
    staying, silent = start_two(launch, "learner.collective_timeout_s=5", "checkpoint.every_iterations=1")
    staying.until_iteration(2)
    frozen = [silent.process.pid, own_rank(silent)]
    for pid in frozen:
        silent.signal(signal.SIGSTOP, pid)
    staying.wait(1)
    (line,) = errors(staying)
    assert "lost the others" in line and "did not answer for 5 s" in line
    for pid in reversed(frozen):
        silent.signal(signal.SIGKILL, pid)
    silent.wait(-9)
