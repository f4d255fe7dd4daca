"""Training processes that tests kill, stop and starve; and proof that nothing of them stays behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gipo_vla.benchmarks.soak.processes import MARK, marked
from gipo_vla.distributed.group import TORCHRUN_NAMES

SHARED_MEMORY = Path("/dev/shm")
PATIENCE = 120.0


class Launched:
    """A command under way, and its run folder."""

    def __init__(
        self, command: list[str], folder: Path, environment: dict[str, str], stdin: str | None = None
    ) -> None:
        self.folder = folder
        self.mark = environment[MARK]
        self._log_path = folder.with_suffix(f".{uuid.uuid4().hex[:6]}.log")
        with self._log_path.open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, text=True
            )
        assert self.process.stdin is not None
        if stdin is not None:
            self.process.stdin.write(stdin)
        self.process.stdin.close()

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    @property
    def checkpoints(self) -> list[str]:
        """Oldest first."""
        found = self.folder.glob("checkpoints/0*")
        return sorted(path.name for path in found)

    def rows(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl, which may be being written: what follows the last newline is none yet."""
        path = self.folder / "metrics.jsonl"
        *lines, _ = (path.read_text() if path.exists() else "").split("\n")
        return [json.loads(line) for line in lines]

    def until(self, happened: Callable[[], object], what: str) -> None:
        """Wait for something while the command runs."""
        deadline = time.monotonic() + PATIENCE
        while not happened():
            assert self.process.poll() is None, f"ended before {what}:\n{self.log[-4000:]}"
            assert time.monotonic() < deadline, f"{what} did not happen:\n{self.log[-4000:]}"
            time.sleep(0.02)

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def until_iteration(self, iteration: int) -> None:
        self.until(lambda: len(self.rows()) >= iteration, f"iteration {iteration}")

    def wait(self, status: int | None = 0) -> None:
        """Wait for the end; None accepts any status."""
        try:
            found = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end:\n{self.log[-4000:]}") from None
        assert status is None or found == status, f"exit status {found}:\n{self.log[-6000:]}"

    def leave_behind_nothing(self) -> None:
        """Wait until no process of this launch lives."""
        deadline = time.monotonic() + PATIENCE
        while marked(self.mark):
            assert time.monotonic() < deadline, f"still running:\n{self.log[-4000:]}"
            time.sleep(0.05)

    def descendants(self, module: str) -> list[int]:
        """Processes of this launch that run ``python -m module``, by age."""
        found = [process for process in marked(self.mark) if module in command_line(process)]
        return [process.pid for process in sorted(found, key=lambda process: process.create_time())]

    def ranks(self) -> list[int]:
        """Training processes, rank 0 first (torchrun's own command line names the module, too)."""
        pids = self.descendants("gipo_vla.train")
        return [pid for pid in pids if "torch.distributed.run" not in command_line(psutil.Process(pid))]

    def workers(self) -> list[int]:
        return self.descendants("gipo_vla.rollout.worker")

    def signal(self, number: int, pid: int | None = None) -> None:
        os.kill(pid or self.process.pid, number)


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def shared_memory() -> set[str]:
    """Names in /dev/shm. Semaphores of Python's multiprocessing are left out: no part of a run uses it, and
    other tests do at the same time."""
    paths = SHARED_MEMORY.iterdir() if SHARED_MEMORY.is_dir() else ()
    return {path.name for path in paths if not path.name.startswith("sem.mp-")}


Launch = Callable[..., Launched]


@pytest.fixture
def launch(tmp_path: Path, tiny_overrides: tuple[str, ...]) -> Iterator[Launch]:
    """``launch("key=value", ..., ranks=2, folder=..., script=...)``: start a tiny training run.

    After the test no process that descends from it lives and no shared memory is left.
    """
    mark = uuid.uuid4().hex
    before = shared_memory()
    started: list[Launched] = []

    def start(
        *overrides: str,
        ranks: int = 1,
        folder: Path | None = None,
        script: Path | None = None,
        argument: str | None = None,
        command: tuple[str, ...] | None = None,
        stdin: str | None = None,
        torchrun: tuple[str, ...] = (),
        prefix: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> Launched:
        resumed = any(text.startswith("resume=") and text != "resume=auto" for text in overrides)
        folder = folder or tmp_path / "run"
        target = [str(script)] if script else ["-m", "gipo_vla.train"]
        target += [argument] if argument else []
        words = [*prefix, sys.executable]
        if ranks > 1:
            words += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *torchrun]
        words = [*command] if command else [*words, *target]
        settings = () if resumed else (*tiny_overrides, "learner.device=cpu", f"run_dir={folder}")
        inherited = {name: value for name, value in os.environ.items() if name not in TORCHRUN_NAMES}
        inherited |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", MARK: mark} | (environment or {})
        launched = Launched([*words, *settings, *overrides], folder, inherited, stdin)
        started.append(launched)
        return launched

    yield start
    running = [one for one in started if one.process.poll() is None]
    for one in running:
        one.process.kill()
        one.process.wait()
    deadline = time.monotonic() + 10
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    told = [f"{process.pid}: {' '.join(command_line(process))[:120]}" for process in left]
    for process in left:
        process.kill()
    assert not told, f"processes left behind: {told}"
    while (new := shared_memory() - before) and time.monotonic() < deadline:
        time.sleep(0.1)  # another test's, perhaps
    assert not new, f"shared memory left behind: {new}"
    assert not running, "a test must see its runs end"


@pytest.fixture
def going_on(launch: Launch) -> Callable[..., Launched]:
    """``going_on(run, ...)``: continue it to its end and return the continuation."""

    def go_on(run: Launched, *overrides: str, ranks: int = 1, status: int = 0) -> Launched:
        continued = launch(f"resume={run.folder}", *overrides, ranks=ranks, folder=run.folder)
        continued.wait(status)
        return continued

    return go_on
