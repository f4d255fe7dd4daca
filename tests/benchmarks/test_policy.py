"""The benchmark of vision-language-action networks, and the operations that it divides by."""

from __future__ import annotations

import dataclasses
import json

import pytest

from gipo_vla import benchmark
from gipo_vla.benchmarks.flops import forward_flops, train_flops
from gipo_vla.benchmarks.policy import PolicyBenchmark
from gipo_vla.policies.lora import LoraSettings
from gipo_vla.policies.memory_plan import Workload
from gipo_vla.policies.openvla_oft import OpenVlaOftSettings
from tests.conftest import TINY, TINY_VLA


def test_7b_operations_per_sample() -> None:
    """Sums over the matrices of one and two images at a prompt of 30 tokens."""
    every = LoraSettings(towers=("vision", "projector", "language_model"))
    settings = OpenVlaOftSettings(random_weights=True, lora=every)
    for images, forward in ((1, 4.9e12), (2, 8.8e12)):
        workload = Workload(1, images=images)
        assert forward_flops(settings, workload) == pytest.approx(forward, rel=0.01)
        assert train_flops(settings, workload) == pytest.approx(2 * forward, rel=0.01)
        again = dataclasses.replace(settings, activation_checkpointing=True)
        assert train_flops(again, workload) == pytest.approx(3 * forward, rel=0.01)


@pytest.mark.medium
def test_all_figures_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = (*(text for text in TINY if not text.startswith("policy.")), *TINY_VLA)
    assert benchmark.main(["policy", "act_batch=4", "micro_batch=2", "seconds=0.05", *tiny]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"benchmark", *(field.name for field in dataclasses.fields(PolicyBenchmark))}
    assert result["benchmark"] == "policy" and (result["act_batch"], result["micro_batch"]) == (4, 2)
    assert result["decisions_per_second"] > 0 and result["samples_per_second"] > 0
    assert 0 < result["act_peak_share"] < 1.5 and 0 < result["train_peak_share"] < 1.5
    assert result["peak_memory_bytes"] > result["planned_memory_bytes"] > 0
    assert set(result["numerical_floor"]) == {"float32", "bfloat16"}
    assert result["numerical_floor"]["float32"]["max"] <= 1e-4
    assert result["tokens_per_sample"] > 0
