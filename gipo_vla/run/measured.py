"""What a run measured of what its plan predicted."""

from __future__ import annotations

import contextlib
import math
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from gipo_vla.distributed import group


@dataclass(frozen=True)
class Measured:
    """Figures at the end of a run; None where there is nothing to measure."""

    env_steps: int | None = None
    updates: int | None = None
    mean_lag_iterations: float | None = None
    """Of the iterations in which the replay was full."""
    mean_lag_updates: float | None = None
    process_bytes: int | None = None
    """Greatest resident set of a training process while it trained: the largest of the ranks."""
    worker_bytes: int | None = None
    """All simulator workers of a rank, without what they share: the largest of the ranks."""
    device_bytes: int | None = None
    """Peak allocated on the GPU: the largest of the ranks."""
    training_seconds: float | None = None


@dataclass(frozen=True)
class MeasuredMemory:
    """See ``Measured``."""

    process_bytes: int
    worker_bytes: int | None
    device_bytes: int | None


def measure_memory(device: torch.device, workers: Sequence[int] = ()) -> MeasuredMemory:
    """The memory of the run so far, the largest of the ranks; a collective call.

    To be called when the training is done, before anything else (an evaluation, a video) takes memory.

    Args:
        workers: process ids of this rank's simulator workers.
    """
    process = peak_resident_bytes()
    unshared = sum(psutil.Process(pid).memory_full_info().uss for pid in workers)
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    columns = zip(*group.gather((process, unshared, on_device)), strict=True)
    process, unshared, on_device = (max(column) for column in columns)
    return MeasuredMemory(process, unshared if workers else None, on_device or None)


def peak_resident_bytes() -> int:
    """Return this process's largest resident set so far.

    From Linux itself where it tells: what ``getrusage`` says begins with the peak of the process that
    started this one.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def mean_after(rows: Sequence[Mapping[str, Any]], name: str, iteration: int) -> float | None:
    """The mean of a metric over the iterations after ``iteration``; None where there are none."""
    values = [row[name] for row in rows if row["iteration"] > iteration and row.get(name) is not None]
    mean = float(np.mean(values)) if values else math.nan
    return mean if math.isfinite(mean) else None
