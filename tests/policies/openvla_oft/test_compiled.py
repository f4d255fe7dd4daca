"""``policy.compile`` over the row counts of a run: how many graphs, and whether one breaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from gipo_vla.policies.openvla_oft import build
from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
from tests.learner import vla

MOST = 6
"""The twin's and the learner's; with gradients; fewer rows for values, from which on rows are a variable; and
one row alone, twice."""


@pytest.mark.slow
def test_graphs_do_not_grow_with_the_sizes_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    def compile_(self: OpenVlaOftPolicy) -> None:
        self.network.language_model.compile(backend=backend)

    monkeypatch.setattr(OpenVlaOftPolicy, "compile_if_asked", compile_)
    torch._dynamo.reset()
    counters.clear()
    settings = vla.settings()
    policy = build(settings, vla.spec(settings), "cpu", torch.bfloat16)
    twin, observations = policy.twin(), vla.trial(settings).observations

    def train(rows: int) -> None:
        tokens = torch.zeros(rows, 2, 3, dtype=torch.int64)
        evaluation = policy(observations(rows), tokens, torch.full((rows,), 1.6))
        (evaluation.log_probs.mean() + evaluation.values.mean()).backward()

    twin.act(observations(56), 1.6)
    policy.act(observations(56), 1.6)
    for rows in (16, 15, 2, 12):
        train(rows)
        policy.value(observations(2))
    seen = len(graphs)
    for rows in (13, 7, 9):
        train(rows)
        policy.act(observations(rows + 20), 1.6)
    assert len(graphs) == seen, "no more for other sizes"
    train(1)
    policy.act(observations(1), 1.6)
    assert len(graphs) <= MOST and not counters["graph_break"]
