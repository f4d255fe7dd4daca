"""The benchmark of vision-language-action networks, and its count of operations."""

from __future__ import annotations

import json

import pytest
import torch

from gipo_vla import benchmark
from gipo_vla.benchmarks.policy import matrix_operations
from tests.conftest import TINY, TINY_VLA

FIGURES = {
    "benchmark",
    "device",
    "dtype",
    "parameters",
    "trainable_parameters",
    "tokens_per_sample",
    "act_batch",
    "decisions_per_second",
    "act_peak_share",
    "micro_batch",
    "samples_per_second",
    "train_peak_share",
    "matrix_peak",
    "matrix_peak_source",
    "peak_memory_bytes",
    "planned_memory_bytes",
    "numerical_floor",
}
"""Keys that programs rely on."""


def test_operations_of_attention_and_of_backward_passes_are_counted() -> None:
    batch, heads, tokens, width = 2, 4, 64, 16
    left = torch.randn(batch, heads, tokens, width, requires_grad=True)
    product = 2 * batch * heads * tokens * tokens * width

    def attend() -> None:
        torch.nn.functional.scaled_dot_product_attention(left, left, left).sum().backward()

    assert matrix_operations(attend) == 3 * 2 * product  # two products, each with two gradients


@pytest.mark.medium
def test_all_figures_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = (*(text for text in TINY if not text.startswith("policy.")), *TINY_VLA)
    assert benchmark.main(["policy", "act_batch=4", "micro_batch=2", "seconds=0.05", *tiny]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == FIGURES
    assert result["benchmark"] == "policy" and (result["act_batch"], result["micro_batch"]) == (4, 2)
    assert result["decisions_per_second"] > 0 and result["samples_per_second"] > 0
    assert 0 < result["act_peak_share"] < 1.5 and 0 < result["train_peak_share"] < 1.5
    assert result["peak_memory_bytes"] > result["planned_memory_bytes"] > 0
    assert set(result["numerical_floor"]) == {"float32", "bfloat16"}
    assert result["numerical_floor"]["float32"]["max"] <= 1e-4
    assert result["tokens_per_sample"] > 0
