"""DeepSpeed's own engine, on the CPU: what would make the host wait for a GPU. (``tests/fake_device`` has the
rest of an update, with another engine.)"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gipo_vla.learner.learner import Learner
from gipo_vla.replay.segment import SegmentBatch

aten = torch.ops.aten


class Looks(TorchDispatchMode):
    """Counts the operations that hand a tensor's values to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default):
            self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("zero_stage", [1, 2])
@pytest.mark.parametrize("value_only_updates", [0, 9])
def test_no_wait_inside_a_micro_batch(
    make_learner: Callable[..., Learner],
    make_batch: Callable[..., SegmentBatch],
    monkeypatch: pytest.MonkeyPatch,
    zero_stage: int,
    value_only_updates: int,
) -> None:
    from deepspeed.accelerator import get_accelerator

    synchronized: list[str] = []
    accelerator = type(get_accelerator())
    monkeypatch.setattr(accelerator, "synchronize", lambda self, *a, **k: synchronized.append("wait"))
    learner = make_learner(
        micro_batch_segments=1, zero_stage=zero_stage, value_only_updates=value_only_updates
    )
    for _ in range(4):  # DeepSpeed's throughput timer waits from its third update on
        update = learner.begin(make_batch(), 3)
        for index in range(learner.micro_batches):
            with Looks() as looks:
                learner.micro_step(update, index)
            if index < learner.micro_batches - 1:
                assert not looks.seen
        assert learner.end(update)["learner/skipped"] == 0
    assert learner.micro_batches == 4 and not synchronized


@pytest.mark.parametrize("settings", [{"value_only_updates": 1}, {"policy_every": 2}], ids=str)
def test_while_only_the_value_trains_the_policy_has_no_backward_pass(
    make_learner: Callable[..., Learner], make_batch: Callable[..., SegmentBatch], settings: dict[str, int]
) -> None:
    learner = make_learner(**settings)
    reached: list[str] = []
    for name, parameter in learner.policy.named_parameters():  # type: ignore[attr-defined]
        parameter.register_hook(lambda gradient, name=name: reached.append(name))
    before = {n: p.detach().clone() for n, p in learner.policy.named_parameters()}  # type: ignore[attr-defined]
    for trained in (("critic", "value_head"), ("critic", "value_head", "actor", "action_head")):
        reached.clear()
        update = learner.begin(make_batch(), 3)
        learner.micro_step(update, 0)
        metrics = learner.end(update)
        assert {name.partition(".")[0] for name in reached} == set(trained)
        assert (metrics.get("gradient_norm/policy", 0) > 0) == ("actor" in trained)
    moved = {n for n, p in learner.policy.named_parameters() if not torch.equal(p, before[n])}  # type: ignore[attr-defined]
    assert moved == set(before)
