"""Faults, done and witnessed: each act returns what was seen of it afterwards, or nothing.

A process that is to die while something happens is stopped first (SIGSTOP); only if that something is still
under way while it stands still is it killed. So the instant is a fact, not a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from gipo_vla.benchmarks.soak.machine import SmallDisk
from gipo_vla.benchmarks.soak.processes import Launch, gone, stopped, until
from gipo_vla.benchmarks.soak.schedule import Fault
from gipo_vla.checkpoint import folder as folders
from gipo_vla.telemetry.metrics import read_json_lines

PATIENCE = 30.0
"""Seconds in which something must be seen."""
LEAVING = 120.0
"""Seconds in which a process that was asked to stop must have left."""
NO_ROOM = ("No space left on device", "no room on the disk")


@dataclass(frozen=True)
class Scene:
    """Where a fault happens."""

    launch: Launch
    folder: Path
    """Of the run, or of the sweep, as the soak sees it."""
    disk: SmallDisk | None
    random: np.random.Generator
    finished: Callable[[], bool]
    """Whether the run, or every job of the sweep, is finished."""

    def victim(self, role: str) -> psutil.Process:
        """A process in a role, when there is one. Raises NoSuchProcess: none came."""
        found: list[psutil.Process] = []

        def there() -> bool:
            found[:] = self.launch.processes(role)
            return bool(found) or self.launch.status() is not None

        until(there, PATIENCE, 0.2)
        return self.one_of(found)

    def one_of(self, processes: Sequence[psutil.Process]) -> psutil.Process:
        """One of several, by the seed. Raises NoSuchProcess: there is none."""
        if not processes:
            raise psutil.NoSuchProcess(0, msg="there is none")
        return processes[int(self.random.integers(len(processes)))]

    def first(self, role: str) -> psutil.Process:
        """The same, and under torchrun rank 0, which writes the run folder. Raises NoSuchProcess."""
        if role == "rank":
            return next(one for one in self.launch.processes(role) if one.environ()["RANK"] == "0")
        return self.victim(role)

    def run_of(self, process: psutil.Process) -> Path:
        """The run folder that a process writes."""
        word = next(word for word in process.cmdline() if word.startswith("run_dir="))
        name = Path(word.partition("=")[2]).name
        return self.folder if self.folder.name == name else self.folder / name


def inject(fault: Fault, scene: Scene) -> str:
    """Do a fault; returns how it was witnessed, empty where it was not: the run had ended, or the moment did
    not come."""
    try:
        return ACTS[fault.act](fault, scene)
    except (psutil.Error, StopIteration, FileNotFoundError):
        return ""


def _killed(fault: Fault, scene: Scene) -> str:
    return _end(scene.victim(fault.role))


def _end(process: psutil.Process) -> str:
    process.kill()
    return f"{process.pid} is gone" if until(lambda: gone(process), PATIENCE) else ""


def _stopped(fault: Fault, scene: Scene) -> str:
    process = scene.victim(fault.role)
    process.send_signal(fault.signal)
    left = until(lambda: gone(process), LEAVING)
    return f"{process.pid} left after {fault.signal.name}" if left and not scene.finished() else ""


def _suspended(process: psutil.Process) -> str:
    process.suspend()
    return f"{process.pid} stood still" if until(lambda: stopped(process), PATIENCE) else ""


def _hung_then_continued(fault: Fault, scene: Scene) -> str:
    process = scene.victim(fault.role)
    try:
        seen = _suspended(process)
        until(lambda: gone(process), fault.seconds)
    finally:
        process.resume()
    return seen and f"{seen} for {fault.seconds:.1f} s"


def _hung_then_killed(fault: Fault, scene: Scene) -> str:
    process = scene.victim(fault.role)
    seen = _suspended(process)
    until(lambda: gone(process), fault.seconds)
    return seen and f"{seen}, then {_end(process)}"


def _hung(fault: Fault, scene: Scene) -> str:
    """A worker that stands still until it is replaced."""
    process = scene.victim(fault.role)
    seen = _suspended(process)
    replaced = until(lambda: gone(process) or scene.launch.status() is not None, PATIENCE)
    return f"{seen} until it was replaced" if seen and replaced else ""


def caught(process: psutil.Process, happening: Callable[[], bool]) -> bool:
    """Stop a process at an instant at which something is under way; False if that did not come."""

    def look() -> bool:
        if not happening():
            return gone(process)
        process.suspend()
        if until(lambda: stopped(process), PATIENCE, 0.001) and happening():
            return True
        process.resume()
        return False

    return until(look, PATIENCE, 0.001) and not gone(process)


def _partial(checkpoints: Path) -> list[str]:
    return [path.name for path in checkpoints.glob(".partial-*")]


def _killed_while_saving(fault: Fault, scene: Scene) -> str:
    process = scene.first(fault.role)
    checkpoints = scene.run_of(process) / "checkpoints"
    if not caught(process, lambda: bool(_partial(checkpoints))):
        return ""
    half = _partial(checkpoints)
    return f"{half[0]} is half written, {_end(process)}"


def _killed_while_metrics_are_written(fault: Fault, scene: Scene) -> str:
    """After a line was written that no checkpoint covers."""
    process = scene.first(fault.role)
    run = scene.run_of(process)
    metrics = run / "metrics.jsonl"
    before = metrics.stat().st_size

    def uncovered() -> int:
        saved = [int(name.split("-")[0]) for name in folders.names(run / "checkpoints")[:1]]
        return len(read_json_lines(metrics)) - max(saved, default=0)

    if not caught(process, lambda: metrics.stat().st_size > before and uncovered() > 0):
        return ""
    return f"{uncovered()} lines without a checkpoint, {_end(process)}"


def _killed_while_a_worker_is_replaced(fault: Fault, scene: Scene) -> str:
    process = scene.victim(fault.role)
    workers = process.children()
    scene.one_of(workers).kill()
    known = {one.pid for one in workers}

    def new() -> list[int]:
        return [one.pid for one in process.children() if one.pid not in known and not gone(one)]

    if not caught(process, lambda: bool(new())):
        return ""
    return f"worker {new()[0]} had just been started, {_end(process)}"


def _disk_full(fault: Fault, scene: Scene) -> str:
    """Room is made again after a while, or after the run has left."""
    disk, launch = scene.disk, scene.launch
    assert disk is not None
    said = sum(launch.text().count(words) for words in NO_ROOM)
    disk.fill()
    seen = until(lambda: sum(launch.text().count(words) for words in NO_ROOM) > said, PATIENCE)
    until(lambda: launch.status() is not None, fault.seconds)
    disk.make_room()
    return "the run said so" if seen else ""


def _killed_while_saving_disk_full(fault: Fault, scene: Scene) -> str:
    """The next launch finds half a checkpoint of a dead process on a full disk; ``make_room`` comes after it
    has ended or has had some time."""
    process, disk = scene.first(fault.role), scene.disk
    assert disk is not None
    checkpoints = scene.folder / "checkpoints"
    if not caught(process, lambda: bool(_partial(checkpoints))):
        return ""
    disk.fill()
    ended = _end(process)
    return f"{_partial(checkpoints)[0]} and {disk.free} bytes are left, {ended}" if disk.free == 0 else ""


ACTS: dict[str, Callable[[Fault, Scene], str]] = {
    "killed": _killed,
    "stopped": _stopped,
    "hung": _hung,
    "hung, continued": _hung_then_continued,
    "hung, killed": _hung_then_killed,
    "killed while saving": _killed_while_saving,
    "killed while metrics are written": _killed_while_metrics_are_written,
    "killed while a worker is replaced": _killed_while_a_worker_is_replaced,
    "disk full": _disk_full,
    "killed while saving, disk full": _killed_while_saving_disk_full,
}
