"""One job as a process of its own: started, asked to stop, killed, what its log says, and its share of the
machine.

A job has a session of its own, so that Ctrl-C reaches the sweep alone, which passes it on once. Should the
sweep die without a word, Linux sends its jobs a SIGTERM: they save and leave, and nobody is an orphan.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

import psutil
import torch

from gipo_envs.errors import UserError
from gipo_vla import foreign
from gipo_vla.distributed.children import die_with, telling_line
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.sweeping.folders import LOG
from gipo_vla.sweeping.jobs import Job
from gipo_vla.sweeping.settings import SweepSettings

MOST_OF_A_LOG = 2**20
"""Bytes at the end of a log in which the reason of a failure is looked for."""

Command = Callable[[Job, Path], list[str]]
"""The command line of a job in a run folder."""


# ------------------------------------------------------------------------------------- a share of the machine


def cores() -> int:
    """Cores that this process may use (less than the machine's under Slurm or taskset)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Ids of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them: numbers, or names of GPUs
    and of MIG slices. CUDA reads that list up to the first -1."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",") if name.strip()]
        return names[: names.index("-1")] if "-1" in names else names
    return [str(index) for index in range(torch.cuda.device_count())]


def at_once(sweep: SweepSettings, runs: Sequence[TrainingSettings], cores_here: int, gpus_here: int) -> int:
    """Jobs that run side by side: what was asked for, else as many as the machine feeds.

    Raises:
        UserError: one job needs more GPUs than there are.
    """
    on_gpu = gpus_here > 0 and any(run.learner.device != "cpu" for run in runs)
    if on_gpu and sweep.ranks > gpus_here:
        raise UserError(
            f"nproc_per_node is {sweep.ranks}, but there are {gpus_here} GPUs: lower it, or set "
            "learner.device=cpu"
        )
    if sweep.jobs is not None:
        return sweep.jobs
    # A rank keeps its simulators busy, or the learner's threads; they mostly take turns.
    wanted = max((max(run.rollout.workers, run.learner.threads) for run in runs), default=1)
    by_cores = cores_here // (sweep.ranks * wanted)
    return max(1, min(by_cores, gpus_here // sweep.ranks) if on_gpu else by_cores)


def gpus_of(slot: int, ranks: int, available: Sequence[str]) -> list[str]:
    """GPUs of the job in a slot: its own while there are enough, then shared in turn."""
    first = slot % max(1, len(available) // ranks) * ranks
    return list(available[first : first + ranks])


# -------------------------------------------------------------------------------------------------- starting


def train_command(job: Job, folder: Path, torchrun_ranks: int | None = None) -> list[str]:
    """``python -m gipo_vla.train ...``, or the same under torchrun.

    Args:
        torchrun_ranks: None: a plain process.
    """
    run = ["-m", "gipo_vla.train", *job.arguments, f"run_dir={folder}", "resume=auto"]
    if torchrun_ranks is None:
        return [sys.executable, *run]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={torchrun_ranks}"]
    return [sys.executable, *launcher, *run]


def environment(threads: int, gpus: Sequence[str]) -> dict[str, str]:
    """The environment of a job.

    Args:
        threads: for libraries that would take every core.
        gpus: that it may see; none: as this process.
    """
    # torchrun restarts its ranks with a fresh store; see gipo_vla.distributed.group.
    defaults = {"OMP_NUM_THREADS": str(threads), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return defaults | dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})


class JobProcess:
    """A running job.

    Args:
        slot: place among those that run side by side.
        lock: kept as long as the job runs.
    """

    def __init__(
        self,
        job: Job,
        folder: Path,
        command: list[str],
        environment: dict[str, str],
        slot: int,
        lock: IO[str],
    ) -> None:
        self.job, self.folder, self.slot = job, folder, slot
        self._lock = lock
        self._began = time.monotonic()
        self.stopping = False
        """It was asked to stop."""
        self._log = folder / LOG
        self._log_begins = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = psutil.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                # Safe: this process has one thread of its own when it starts jobs.
                preexec_fn=partial(die_with, os.getpid()),
            )
        self._launcher = "torch.distributed.run" in command

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def poll(self) -> int | None:
        """Exit status; negative: the signal that ended it; None while it runs."""
        status = self._process.poll()
        if status is not None:
            self._lock.close()
        return status

    def stop(self) -> None:
        """Ask it to save and leave.

        torchrun gives its ranks 30 seconds after a SIGTERM of its own, too little for a large checkpoint; so
        the ranks are asked, and it leaves after them.
        """
        self.stopping = True
        ranks = self._children(recursive=False) if self._launcher else []
        for process in ranks or [self._process]:
            with suppress(psutil.Error):
                process.terminate()

    def kill(self) -> None:
        """End it and everything that it started, at once."""
        self.stopping = True
        for process in [self._process, *self._children(recursive=True)]:
            with suppress(psutil.Error):
                process.kill()

    def _children(self, recursive: bool) -> list[psutil.Process]:
        with suppress(psutil.Error):
            return list(self._process.children(recursive))
        return []

    def problem(self, status: int) -> str:
        """Why it failed, in one line."""
        if status < 0:
            name = signal.Signals(-status).name
            return f"killed by {name}" + (" (out of memory?)" if -status == signal.SIGKILL else "")
        with foreign.open_regular(self._log) as log:
            log.seek(max(self._log_begins, log.seek(0, os.SEEK_END) - MOST_OF_A_LOG))
            text = log.read().decode(errors="replace")
        return telling_line(text) or f"exit status {status}, and nothing in {self._log}"
