"""Two ranks on one device: NCCL where that is a GPU.

NCCL refuses two ranks on one GPU of a host. It tells hosts apart by ``NCCL_HOSTID`` where that is set, and
between two hosts it compares no GPUs and talks over a socket; so what a run does with NCCL can be tried on a
single GPU. To each rank it is as if it were alone on its node. Speed means nothing here.
"""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

from gipo_vla import foreign
from gipo_vla.benchmarks.suite.job import Job
from gipo_vla.benchmarks.suite.small_runs import SmallRun, settings_of
from gipo_vla.distributed import group

RANKS = 2
FOR_THE_REST_S = 4.0


def measure(job: Job) -> None:
    """Try both ways side by side, and write down what each led to: a refusal is an answer."""
    base = job.folder / "ranks"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    device = job.settings.learner.device
    own = [*settings_of(base / "recording", device), "stop_after=2"]
    ways = {"one host": False}
    if group.choose_device(device).type == "cuda":
        ways["as two hosts"] = True
    begun = {way: _begin(base / way.replace(" ", "_"), own, apart) for way, apart in ways.items()}
    for way, ranks in begun.items():
        problems = [rank.ended(max(job.left - FOR_THE_REST_S, 1.0)) for rank in ranks]
        folder = base / way.replace(" ", "_") / "run"
        job.tell("ranks", {"way": way, "works": not any(problems), **_told(problems, folder)}, way)
    job.close("ranks")


def _begin(folder: Path, overrides: list[str], apart: bool) -> list[SmallRun]:
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(RANKS):
        # Of torchrun's variables, as for two nodes of one process.
        variables = {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NCCL_DEBUG": "WARN"}
        if apart:
            variables |= {"NCCL_HOSTID": f"suite-{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}
        log, words = folder / f"rank{rank}.log", [*overrides, f"run_dir={folder / 'run'}"]
        ranks.append(SmallRun(log, *words, variables=variables))
    return ranks


def _told(problems: list[str | None], folder: Path) -> dict[str, Any]:
    told = [problem for problem in problems if problem is not None]
    if told:
        return {"answer": told[0]}
    rows = list(foreign.json_lines(folder / "metrics.jsonl"))
    return {"iterations": len(rows), "updates": rows[-1]["updates"]}
