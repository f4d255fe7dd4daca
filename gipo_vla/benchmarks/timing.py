"""How long things take on a device, and how much memory they took."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils import benchmark

Result = TypeVar("Result")


def rate(call: Callable[[], object], seconds: float) -> float:
    """Return how often a second ``call`` can be made, over about ``seconds`` after warming up."""
    timer = benchmark.Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return 1 / timer.blocked_autorange(min_run_time=seconds).mean


def timed(call: Callable[[], Result], device: torch.device | None = None) -> tuple[Result, float]:
    """Return what a call returns, and the seconds until it has returned and the device has done its work."""
    _wait_for(device)
    began = time.perf_counter()
    result = call()
    _wait_for(device)
    return result, time.perf_counter() - began


def _wait_for(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
