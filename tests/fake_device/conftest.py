"""Tensors of a device that is not there, and an engine in place of DeepSpeed's, which wants a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from gipo_vla.benchmarks.fake_device import Engine, HostWaits, fake_device
from gipo_vla.learner import engine as engines
from gipo_vla.learner import learner as learners


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The fake device, within its mode."""
    monkeypatch.setattr(
        engines, "build_engine", lambda policy, optimizer, s, d, size, count: Engine(policy, optimizer, count)
    )
    # numpy's work, on numbers that are not there.
    monkeypatch.setattr(learners, "staleness_metrics", lambda packed: {})
    with fake_device() as device:
        yield device


def on_device(module: nn.Module, device: torch.device) -> None:
    """Every parameter and buffer is on the device."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    assert {name for name, tensor in tensors if tensor.device != device} == set()


def counted(call: Callable[[], Any]) -> Mapping[str, int]:
    """Where the host waits in a call."""
    with HostWaits() as waits:
        call()
    return waits.places
