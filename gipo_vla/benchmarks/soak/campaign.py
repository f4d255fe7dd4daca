"""One run, launched again and again under its faults until it is finished, then judged."""

from __future__ import annotations

import shutil
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gipo_envs.errors import RunStoppedError
from gipo_vla.benchmarks.soak import machine
from gipo_vla.benchmarks.soak.damage import Damage, damage
from gipo_vla.benchmarks.soak.faults import LEAVING, NO_ROOM, Scene, inject
from gipo_vla.benchmarks.soak.judgement import leftovers, problems_of, workers_lost
from gipo_vla.benchmarks.soak.kinds import KINDS
from gipo_vla.benchmarks.soak.processes import Launch, kill_all, marked, until
from gipo_vla.benchmarks.soak.records import Records
from gipo_vla.benchmarks.soak.schedule import faults, traits

MOST_FAULTS = 25
"""Of one run; then it is left in peace, so that it ends."""
STALLED = 300.0
"""Seconds without a line of metrics or of the log after which a run counts as lost."""
SEEDS = 3
"""Undisturbed runs that say how much success chance makes."""
LOSING = ("rollout.worker_timeout_s=4", "rollout.max_worker_faults=1000")
"""For runs that are to lose workers."""


@dataclass
class Session:
    """What all runs of a soak share."""

    out: Path
    seed: int
    every: float
    """Mean seconds between two faults of a run."""
    mark: str
    records: Records
    deadline: float = 0.0
    """From here on no more faults (``time.monotonic``)."""
    interrupted: threading.Event = field(default_factory=threading.Event)
    _making: dict[str, threading.Lock] = field(
        default_factory=lambda: {name: threading.Lock() for name in KINDS}
    )

    def reference(self, name: str, seed: int = 0) -> Path:
        """An undisturbed run of a kind, made once. Raises RunStoppedError: it could not be made."""
        folder = self.out / "reference" / f"{name}-{seed}"
        log = folder.with_suffix(".log")
        with self._making[name]:
            log.parent.mkdir(parents=True, exist_ok=True)
            launch = Launch(KINDS[name].command(folder, seed), f"{self.mark}/reference", log)
            until(lambda: launch.status() is not None, 10 * STALLED)
            if launch.status() != 0 and not self.interrupted.is_set():
                kill_all(launch.mark)
                raise RunStoppedError(f"no undisturbed run of {name} could be made, see {log}")
        return folder


class Campaign:
    """A run under faults.

    Args:
        number: of the run; with the session's seed it decides every fault.
    """

    def __init__(self, session: Session, name: str, number: int) -> None:
        self.session, self.name, self.number, self.kind = session, name, number, KINDS[name]
        disks, clocks = machine.has_disks(), machine.has_clocks()
        self.own = traits(session.seed, number, self.kind, disks)
        self.faults = faults(session.seed, number, self.kind, self.own, session.every, clocks)
        self.fault = next(self.faults)
        self.random = np.random.default_rng([session.seed, number, 2])
        self.place = session.out / "runs" / f"{name}-{number:04d}"
        self.place.mkdir(parents=True)
        self.disk = machine.SmallDisk((self.place / "disk").absolute()) if self.own.small_disk else None
        self.inside = self.disk.inside / "run" if self.disk else self.place / "run"
        self.folder = self.disk.outside / "run" if self.disk else self.inside
        self.mark = f"{session.mark}/{number}/"
        self.launches = self.struck = 0
        self.damage: Damage | None = None
        self.problems: list[str] = []

    def go(self) -> None:
        """Run to the end and write down what became of it."""
        compared = "bytes"
        try:
            while not self._finished() and not self.problems and not self.session.interrupted.is_set():
                self._launch()
            until(lambda: not marked(self.mark), LEAVING)
            self.problems += [f"left running: {one}" for one in kill_all(self.mark)]
            compared = self._judge() if self._finished() else compared
        except Exception as error:  # the other runs go on
            self.problems.append(f"not judged, {error!r}")
            traceback.print_exc()
        if not self.session.interrupted.is_set():
            own = {"run": self.number, "kind": self.name, "finished": self._finished(), "compared": compared}
            self.session.records.add(**own, problems=self.problems, launches=self.launches)
        kill_all(self.mark)
        if self.disk and self.problems and self.folder.exists():
            shutil.copytree(self.folder, self.place / "run")
        if self.disk:
            self.disk.close()
        if not self.problems:
            shutil.rmtree(self.place, ignore_errors=True)

    def _finished(self) -> bool:
        runs = self.kind.runs(self.folder)
        jobs = 2 if self.kind.program == "sweep" else 1
        return len(runs) == jobs and all((run / "finished.json").exists() for run in runs)

    def _judge(self) -> str:
        """Add what the run lost; returns what it was compared by."""
        session, found = self.session, self.kind.runs(self.folder)
        self.problems += leftovers(self.folder)
        lost = any(workers_lost(run) for run in found)
        seeds = None
        if lost and self.own.loses_workers:
            seeds = [session.reference(self.name, seed) for seed in range(SEEDS)]
        reference = self.kind.runs(session.reference(self.name))
        for index, (run, undisturbed) in enumerate(zip(found, reference)):
            others = seeds and [self.kind.runs(folder)[index] for folder in seeds]
            self.problems += problems_of(run, undisturbed, self.kind.iterations, others)
        return "interval" if lost else "bytes"

    # --------------------------------------------------------------------------------------------- launches

    def _launch(self) -> None:
        """Launch the run once, see it to its end under faults, and damage a file before the next launch."""
        self.launches += 1
        clock = self.fault.clock if not self.disk else 0
        prefix = self.disk.prefix if self.disk else machine.clock_prefix(clock)
        command = self.kind.command(self.inside.absolute(), 0, *(LOSING if self.own.loses_workers else ()))
        mark = f"{self.mark}{self.launches:03d}"
        launch = Launch([*prefix, *command], mark, self.place / "log.txt")
        if clock:
            seen = until(lambda: machine.clock_of(launch.pid) == clock, 5.0)
            self._record("clock moved", f"{clock} s ahead" if seen else "")
        aimed = self._begin_on_full_disk(launch)
        last = self.fault
        while self._wait(launch, lambda: False, 0.0) and not self._calm():
            if not self.fault.early:
                self._wait(launch, lambda: self._moves(launch), STALLED)
            if not self._wait(launch, lambda: False, self.fault.gap) or self._calm():
                break
            last, aimed = self.fault, True
            self.struck += 1
            self._record(last.name, inject(last, self._scene(launch)))
            self.fault = next(self.faults)
            until(lambda: launch.status() is not None, 0.5)  # what it was struck by may just be ending it
        self._wait(launch, lambda: False, float("inf"))
        self._end(launch, aimed)
        if not last.at_once or last.damage:
            until(lambda: not marked(mark), LEAVING)
            if last.damage and aimed and not marked(mark) and not self._finished() and self.damage is None:
                run = self._some_run()
                self.damage = damage(run, self._log(run), last.damage, self.random) if run else None

    def _calm(self) -> bool:
        over = time.monotonic() > self.session.deadline or self.session.interrupted.is_set()
        return over or self.struck >= MOST_FAULTS or bool(self.problems)

    def _scene(self, launch: Launch) -> Scene:
        return Scene(launch, self.folder, self.disk, self.random, self._finished)

    def _begin_on_full_disk(self, launch: Launch) -> bool:
        if self.disk is None or self.disk.free > 0:
            return False
        self._wait(launch, lambda: any(words in launch.text() for words in NO_ROOM), 20.0)
        self.disk.make_room()
        return True

    def _end(self, launch: Launch, aimed: bool) -> None:
        """Take note of how a launch ended, and whether it told what had been damaged."""
        if self.disk:
            self.disk.make_room()
        status = launch.status()
        if self.session.interrupted.is_set():
            return
        if status and not aimed:
            self.problems.append(f"launch {self.launches} ended with {status} without a fault")
        # Python itself has one where it is interrupted before it has read the first of our modules.
        _, _, traced = launch.text().partition("Traceback")
        if self.kind.program == "train" and "/gipo_vla/" in traced:
            self.problems.append(f"launch {self.launches} ended in a traceback")
        if self.damage is None:
            return
        if self.damage.used():
            self.problems.append(f"resumed from {self.damage.file}, which was {self.damage.how}")
        if line := self.damage.found():
            self._record(f"file {self.damage.how}", line)
            self.damage = None
        elif self._finished():
            self._record(f"file {self.damage.how}", "")

    def _record(self, name: str, seen: str) -> None:
        own = {"run": self.number, "kind": self.name, "launch": self.launches}
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.session.records.add(**own, fault=name, witnessed=seen, at=at)

    def _some_run(self) -> Path | None:
        runs = [run for run in self.kind.runs(self.folder) if not (run / "finished.json").exists()]
        return runs[self.random.integers(len(runs))] if runs else None

    def _log(self, run: Path) -> Path:
        return run / "log.txt" if self.kind.program == "sweep" else self.place / "log.txt"

    # ---------------------------------------------------------------------------------------------- waiting

    def _moves(self, launch: Launch) -> bool:
        return self._changed("metrics.jsonl") > launch.began

    def _changed(self, name: str) -> float:
        """When one of the run's files of this name last changed, in seconds since the epoch."""
        times = []
        for path in [*self.place.glob(name), *(run / name for run in self.kind.runs(self.folder))]:
            if path.exists():
                times.append(path.stat().st_mtime)
        return max(times, default=0.0)

    def _wait(self, launch: Launch, happened: Callable[[], bool], seconds: float) -> bool:
        """Wait until something happens or so many seconds are over; False if the launch has ended. A run that
        says nothing for long is ended, and lost."""
        began = time.monotonic()
        while launch.status() is None:
            if happened() or time.monotonic() - began >= seconds:
                return True
            newest = max(self._changed("metrics.jsonl"), self._changed("log.txt"), launch.began)
            if time.time() - newest > STALLED and not self.problems:
                self.problems.append(f"launch {self.launches} did nothing for {STALLED:.0f} s")
                kill_all(self.mark)
            self.session.interrupted.wait(0.05)
            if self.session.interrupted.is_set():
                kill_all(self.mark)
        return False
