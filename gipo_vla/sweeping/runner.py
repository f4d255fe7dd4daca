"""Runs jobs, so many at once, until all are done, or until it is asked to stop.

One thread and one loop: a job is a process, and nothing here waits for any single one of them.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from types import FrameType

from gipo_vla.sweeping import folders
from gipo_vla.sweeping.folders import SweepFolder
from gipo_vla.sweeping.jobs import Job
from gipo_vla.sweeping.process import Command, JobProcess, environment, gpus_of

POLL_SECONDS = 0.1
BUSY_SECONDS = 2.0
"""Between two looks at jobs that another process is running."""


class Status(StrEnum):
    """What became of a job."""

    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    """It left in order before its end, with a checkpoint."""
    WAITING = "not started"


@dataclass(frozen=True)
class Outcome:
    """A job after the sweep."""

    job: Job
    status: Status
    seconds: float = 0.0
    """Of this session; 0 for a job that was finished before."""
    problem: str = ""
    ran: bool = False
    """It was started in this session."""


class Listener:
    """What the runner tells; ``progress`` has the one for people."""

    def started(self, process: JobProcess) -> None:
        """A job runs."""

    def ended(self, outcome: Outcome) -> None:
        """A job has ended, or was found finished."""

    def tick(self, running: Sequence[JobProcess]) -> None:
        """Some time has passed."""

    def say(self, line: str) -> None:
        """Something that concerns the whole sweep."""


class Runner:
    """Runs the jobs of a sweep. Each is reserved by a lock, so that several runners may share a folder.

    Args:
        folder: of the sweep.
        at_once: jobs side by side.
        command: makes the command line of a job.
        gpus: to divide; none: jobs see what this process sees.
        ranks: processes of one job, each with a GPU.
    """

    def __init__(
        self,
        folder: SweepFolder,
        at_once: int,
        command: Command,
        gpus: Sequence[str] = (),
        ranks: int = 1,
        listener: Listener | None = None,
    ) -> None:
        self.folder, self.at_once, self.command = folder, at_once, command
        self.gpus, self.ranks = gpus, ranks
        self.listener = listener or Listener()
        self.running: list[JobProcess] = []
        self.asked_by: int | None = None
        """The signal that asked the sweep to stop."""
        self._waiting: deque[Job] = deque()
        self._outcomes: dict[str, Outcome] = {}
        self._look_again = 0.0
        self._said_busy = False

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run all that is not done; one outcome a job, in their order."""
        self._waiting.extend(jobs)
        previous = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            while self.running or (self._waiting and self.asked_by is None):
                self._fill_slots()
                self._collect()
                self.listener.tick(self.running)
                time.sleep(POLL_SECONDS if self.running or self._waiting else 0)
        finally:
            for process in self.running:  # only after an error of our own: leave nothing behind
                process.stop()
            for number, handler in previous.items():
                signal.signal(number, handler)
        return [self._outcomes.get(job.digest, Outcome(job, Status.WAITING)) for job in jobs]

    def _fill_slots(self) -> None:
        """Start jobs until every slot is taken or each waiting job has been looked at once."""
        if time.monotonic() < self._look_again:
            return
        busy: list[Job] = []
        while self._waiting and len(self.running) < self.at_once and self.asked_by is None:
            job = self._waiting.popleft()
            if self.folder.finished(job):
                self._end(Outcome(job, Status.FINISHED))
            elif not self._start(job):
                busy.append(job)
        self._waiting.extend(busy)
        if busy:
            self._look_again = time.monotonic() + BUSY_SECONDS
            if not self._said_busy:
                self.listener.say(f"waiting for {busy[0].name}, which another process is running")
            self._said_busy = True

    def _start(self, job: Job) -> bool:
        """False if another process has the job's folder."""
        run = self.folder.run(job)
        lock = folders.try_to_lock(run)
        if lock is None:
            return False
        if self.folder.finished(job):  # by another process, since we looked
            lock.close()
            self._end(Outcome(job, Status.FINISHED))
            return True
        slot = min(set(range(self.at_once)) - {process.slot for process in self.running})
        on_gpu = job.settings.learner.device != "cpu"
        own_gpus = gpus_of(slot, self.ranks, self.gpus) if on_gpu else []
        process = JobProcess(
            job,
            run.path,
            self.command(job, run.path),
            environment(job.settings.learner.threads, own_gpus),
            slot,
            lock,
        )
        self.running.append(process)
        self.folder.record(job, "started", pid=process.pid, gpus=own_gpus)
        self.listener.started(process)
        if self.asked_by is not None:  # the signal came while it was being started
            process.stop()
        return True

    def _collect(self) -> None:
        """Take note of the jobs that have ended."""
        for process in list(self.running):
            status = process.poll()
            if status is None:
                continue
            self.running.remove(process)
            job, seconds, problem = process.job, process.seconds, ""
            if self.folder.finished(job):
                became = Status.FINISHED
            elif status == 0 or process.stopping:
                # Asked to stop before it could listen, a job dies of the signal; that is no failure.
                became = Status.STOPPED
            else:
                became, problem = Status.FAILED, process.problem(status)
            self.folder.record(job, "ended", status=str(became), seconds=round(seconds, 1))
            self._end(Outcome(job, became, seconds, problem, ran=True))

    def _end(self, outcome: Outcome) -> None:
        self._outcomes[outcome.job.digest] = outcome
        self.listener.ended(outcome)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first asks all jobs to save and leave; a Ctrl-C after it kills them."""
        if self.asked_by is not None and number != signal.SIGINT:
            return
        act = JobProcess.stop if self.asked_by is None else JobProcess.kill
        if self.asked_by is None:
            self.asked_by = number
            name = signal.Signals(number).name
            line = f"\n{name}: jobs save and leave, the same command goes on (Ctrl-C again kills them)\n"
            with suppress(OSError):  # straight to the terminal: it may have interrupted any other printing
                os.write(2, line.encode())
        for process in self.running:
            act(process)
