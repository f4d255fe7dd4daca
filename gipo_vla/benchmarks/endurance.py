"""What a long run holds on to: memory, file descriptors, threads, shared memory and disk.

The run is trained as ``gipo_vla.train`` trains it, in this process; a thread beside it looks at this process
and its simulator workers. What fills up by design (the replay, the checkpoints that are kept) does so in the
first part of a run, which is left out.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import scipy  # its parts load when first used

from gipo_envs.errors import UserError
from gipo_vla.benchmarks import Options
from gipo_vla.run.memory import private_bytes
from gipo_vla.run.reinforcement import Reinforcement
from gipo_vla.run.resume import Start
from gipo_vla.run.start import prepare_process
from gipo_vla.run.start import run as run_to_the_end
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.console import figures_table

MIB = 2**20
SHARED_MEMORY = Path("/dev/shm")
LEFT_OUT = 0.25
"""Share of a run's iterations at its start."""
QUANTITIES = {  # of trainer and workers together, where one is not named; the folder without metrics
    "trainer_mib": "trainer (MiB)",
    "worker_mib": "workers (MiB)",
    "shared_mib": "/dev/shm (MiB)",
    "disk_mib": "run folder (MiB)",
    "descriptors": "descriptors",
    "threads": "threads",
}
GROWING = ("metrics.jsonl", "timings.jsonl", "evaluations.jsonl")
"""Files that get a line an iteration."""


def run(settings: TrainingSettings, options: Options) -> dict[str, Any]:
    """Train the run in ``options.out`` and return, for each quantity, its medians in the first and the last
    third of what is looked at, and its slope over 1,000 iterations (Theil and Sen's, with the 95 % interval).

    Raises:
        UserError: no folder; or the run is too short for a slope.
    """
    if options.out is None:
        raise UserError("out is missing: give a folder for the run, for instance out=endurance")
    prepare_process()
    folder = options.out / "run"
    samples: list[dict[str, float]] = []
    with _watching(folder, options.seconds, samples, settings.iterations):
        run_to_the_end(Start(replace(settings, run_dir=str(folder))), Reinforcement)
    (options.out / "resources.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    figures = slopes(samples)
    _show(figures)
    return {"iterations": int(samples[-1]["iteration"]), "samples": len(samples), **figures}


def slopes(samples: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Return medians and slope of each quantity.

    Args:
        samples: ``iteration`` and the quantities, in the order of time.

    Raises:
        UserError: fewer than ten samples remain.
    """
    last = samples[-1]["iteration"] if samples else 0.0
    kept = [row for row in samples if row["iteration"] >= LEFT_OUT * last]
    if len(kept) < 10:
        raise UserError(
            f"{len(kept)} samples are too few for a slope: more iterations, or a smaller seconds= between two"
        )
    iterations = np.array([row["iteration"] for row in kept])
    found = {}
    for name in QUANTITIES:
        values = np.array([row[name] for row in kept])
        # A quantity that never moves has no interval.
        fit = scipy.stats.theilslopes(values, iterations) if np.ptp(values) else np.zeros(4)
        slope, _, low, high = (1000 * float(number) for number in fit)
        third = len(values) // 3
        found[name] = {
            "begin": round(float(np.median(values[:third])), 2),
            "end": round(float(np.median(values[-third:])), 2),
            "slope_per_1000": round(slope, 3),
            "interval_95": [round(low, 3), round(high, 3)],
        }
    return found


@contextmanager
def _watching(
    folder: Path, seconds: float, samples: list[dict[str, float]], iterations: int
) -> Iterator[None]:
    """Append a sample every so many seconds, from the first whole iteration until the last is over, when the
    workers make room for an evaluation."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(seconds):
            if 0 < (iteration := _iterations(folder)) < iterations:
                samples.append({"iteration": float(iteration), **_resources(folder)})

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _iterations(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _resources(folder: Path) -> dict[str, float]:
    own = psutil.Process()
    memory = descriptors = threads = 0
    for process in own.children():
        try:
            memory += private_bytes(process)
            descriptors += process.num_fds()
            threads += process.num_threads()
        except psutil.NoSuchProcess:
            continue
    return {
        "trainer_mib": own.memory_info().rss / MIB,
        "worker_mib": memory / MIB,
        "shared_mib": _bytes(SHARED_MEMORY) / MIB,
        "disk_mib": _bytes(folder) / MIB,
        "descriptors": float(own.num_fds() + descriptors),
        "threads": float(own.num_threads() + threads),
    }


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += 0 if path.name in GROWING else path.lstat().st_size
        except OSError:  # it was there a moment ago
            continue
    return total


def _show(figures: dict[str, dict[str, Any]]) -> None:
    rows = [
        (
            words,
            f"{figures[name]['begin']:,.1f}",
            f"{figures[name]['end']:,.1f}",
            f"{figures[name]['slope_per_1000']:+.2f}",
            "{:+.2f} .. {:+.2f}".format(*figures[name]["interval_95"]),
        )
        for name, words in QUANTITIES.items()
    ]
    columns = ("first third", "last third", "per 1,000 iterations", "95 %")
    figures_table("What the run held on to, its first quarter left out", columns, rows)
