"""A soak: small runs of every kind, launched again and again under faults, and nothing may be lost.

    python -m gipo_vla.benchmark soak minutes=30 seed=0 out=soak

Runs of the kinds of ``kinds.KINDS`` are killed, stopped, hung, starved of disk and damaged as ``schedule``
draws it from the seed, resumed by the same command (``resume=auto``), and at their end compared with a run
that nobody disturbed. docs/reliability.md says what must hold.
"""

from __future__ import annotations

import signal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from gipo_envs.errors import UserError, nearest
from gipo_vla.benchmarks import Options
from gipo_vla.benchmarks.soak import machine
from gipo_vla.benchmarks.soak.campaign import Campaign, Session
from gipo_vla.benchmarks.soak.kinds import KINDS
from gipo_vla.benchmarks.soak.processes import kill_all, until
from gipo_vla.benchmarks.soak.records import Records, summary, table
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.settings import runs
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.console import console, say

SHARED_MEMORY = Path("/dev/shm")


def run(settings: TrainingSettings, options: Options) -> dict[str, Any]:
    """Put runs under faults for ``options.minutes``, see those under way to their end, and return the figures
    of all sessions in the folder; ``status`` is the exit status.

    Raises:
        UserError: no folder, a kind that there is not, or settings that a soak does not take.
        RunStoppedError: an undisturbed run could not be made.
    """
    if options.out is None:
        raise UserError("out is missing: give a folder for the soak, for instance out=soak")
    kinds = options.kinds.split(",") if options.kinds else list(KINDS)
    for name in kinds:
        if name not in KINDS:
            raise UserError(f"kinds={options.kinds}: {name!r} is none; {nearest(name, KINDS)}")
    if replace(settings, seed=0) != runs.load("train", ["seed=0"]):
        raise UserError(
            "the runs of a soak have settings of their own (docs/reliability.md): of a run's, give seed= only"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    with RunFolder(options.out).lock():
        mark, records = uuid.uuid4().hex, Records(options.out / "faults.jsonl")
        session = Session(options.out, settings.seed, options.every, mark, records)
        for words, there in (("a small disk", machine.has_disks()), ("a clock", machine.has_clocks())):
            if not there:
                say(f"this machine lets no process have {words} of its own: such faults are left out")
        before = _shared_memory()
        _work(session, kinds, options)
        if not until(lambda: not _shared_memory() - before, 10.0):
            left = f"left in /dev/shm: {', '.join(sorted(_shared_memory() - before))}"
            records.add(run=-1, kind="all", finished=True, compared="", problems=[left], launches=0)
    console.print(table(records.all, kinds))
    figures = summary(records.all)
    for line in figures["lost"]:
        say(f"lost: {line}")
    interrupted = session.interrupted.is_set()
    status = 130 if interrupted else int(bool(figures["lost"]))
    return {**figures, "interrupted": interrupted, "status": status}


def _work(session: Session, kinds: list[str], options: Options) -> None:
    """Have so many threads put one run after another under faults, until the time is over or somebody asks
    to stop (Ctrl-C, SIGTERM)."""
    interrupted = session.interrupted

    def stop(*_: object) -> None:
        interrupted.set()
        kill_all(session.mark)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    # Under nohup a hangup is ignored, and would be by all that is started here: a handler is not inherited.
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, (lambda *_: None) if ignored else stop)
    numbers, lock = iter(range(session.records.next_run, 10**9)), threading.Lock()

    def work() -> None:
        while time.monotonic() < session.deadline and not interrupted.is_set():
            with lock:
                number = next(numbers)
            Campaign(session, kinds[number % len(kinds)], number).go()

    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            try:
                for reference in [pool.submit(session.reference, name) for name in kinds]:
                    reference.result()
                session.deadline = time.monotonic() + 60 * options.minutes
                for worker in [pool.submit(work) for _ in range(options.jobs)]:
                    worker.result()
            except BaseException:
                stop()
                raise
    finally:
        kill_all(session.mark)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _shared_memory() -> set[str]:
    return {path.name for path in SHARED_MEMORY.iterdir()} if SHARED_MEMORY.is_dir() else set()
