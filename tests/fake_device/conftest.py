"""Tensors of a device that is not there, and an engine in place of DeepSpeed's, which wants a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gipo_vla.benchmarks.fake_device import HostWaits, fake_device
from gipo_vla.learner import engine as engines
from gipo_vla.learner import learner as learners
from gipo_vla.learner.optimizer import GroupClippedAdamW


class Engine:
    """What the learner sees of DeepSpeed's engine; ``test_deepspeed.py`` has the real one on the CPU."""

    def __init__(self, policy: nn.Module, optimizer: GroupClippedAdamW, micro_batches: int) -> None:
        self.policy, self.optimizer, self.micro_batches = policy, optimizer, micro_batches
        self.skipped_steps = self.steps = 0
        optimizer.create_state()

    def __call__(self, *inputs: Any) -> Any:
        return self.policy(*inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.steps += 1
        if self.steps % self.micro_batches == 0:
            norms = [p.grad.norm() for p in self.policy.parameters() if p.grad is not None]
            assert bool(torch.stack(norms).isfinite().all())  # DeepSpeed's one wait
            self.optimizer.step()
            self.optimizer.zero_grad()


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
