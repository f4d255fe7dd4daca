"""``benchmark cost`` at tiny size: what the figures must not exceed, and that they see what they should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gipo_vla.benchmarks.cost import CARDS, Counted, count, summarize
from gipo_vla.policies.lora import LoraSettings
from gipo_vla.settings import runs
from gipo_vla.settings.schema import TrainingSettings
from tests.conftest import TINY, TINY_VLA
from tests.learner import vla

KEYS = {
    "learner_ms_per_sample",
    "end_to_end_ms_per_sample",
    "host_waits_per_micro_batch",
    "host_waits_per_update",
    "teraflop_per_sample",
    "saved_bytes_per_sample",
    "largest_micro_batch",
}


def run(**changes: Any) -> tuple[TrainingSettings, Counted]:
    plain = [text for text in TINY if not text.startswith("policy.")]
    settings = runs.load("train", [*plain, *TINY_VLA, "learner.precision=bfloat16"])
    settings = replace(settings, policy=vla.settings(**changes))
    return settings, count(settings, CARDS["H200"], 2)


@pytest.fixture(scope="module")
def lora() -> tuple[TrainingSettings, Counted]:
    return run()


def test_the_figures_of_a_lora_learner(lora: tuple[TrainingSettings, Counted]) -> None:
    settings, counted = lora
    larger = replace(counted, rows=2 * counted.rows, peak_bytes=counted.peak_bytes + (1 << 20))
    figures = summarize(settings, CARDS["H200"], counted, larger)
    assert figures.keys() >= KEYS
    assert (figures["host_waits_per_micro_batch"], figures["host_waits_per_update"]) == (0, 2)
    # Two layers and two towers of two blocks each: launches are what costs at this size.
    assert counted.micro_batch.kernels <= 900
    assert counted.saved_bytes <= 4_500_000
    assert 0 < figures["learner_ms_per_sample"] < figures["end_to_end_ms_per_sample"]
    assert figures["largest_micro_batch"] > 1000


def test_arithmetic_in_float32_costs_more(lora: tuple[TrainingSettings, Counted]) -> None:
    """What ``lora.dtype=auto`` gained: converted inputs, and a product and a sum apart for every adapter."""
    _, cheap = lora
    _, dear = run(lora=LoraSettings(dtype="float32"))
    assert dear.micro_batch.kernels > cheap.micro_batch.kernels
    assert dear.saved_bytes > 1.1 * cheap.saved_bytes
    assert dear.micro_batch.bytes > cheap.micro_batch.bytes
