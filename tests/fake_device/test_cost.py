"""``benchmark cost``: what its figures must not exceed, at tiny size and at 7B, and that they see what they
should."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gipo_vla import benchmark
from gipo_vla.benchmarks.cost import CARDS, Counted, Peak, Sample, count
from gipo_vla.policies.lora import LoraSettings
from gipo_vla.settings import runs
from gipo_vla.settings.schema import TrainingSettings
from tests.conftest import TINY, TINY_VLA
from tests.learner import vla

H200 = CARDS["H200"]
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BOUNDS = {
    "learner_ms_per_sample": 0.24,
    "end_to_end_ms_per_sample": 0.51,
    "host_waits_per_micro_batch": 0,
    "host_waits_per_update": 2,
    "saved_bytes_per_sample": 185_000,
}
"""Of the tiny network, where launches are what costs; not to be exceeded."""


def run(value_only: bool = False, **changes: Any) -> tuple[TrainingSettings, Counted]:
    plain = [text for text in TINY if not text.startswith("policy.")]
    settings = runs.load("train", [*plain, *TINY_VLA, "learner.precision=bfloat16"])
    settings = replace(settings, policy=vla.settings(**changes))
    return settings, count(settings, H200, 2, value_only)


@pytest.fixture(scope="module")
def lora() -> tuple[TrainingSettings, Counted]:
    return run()


def sample(settings: TrainingSettings, counted: Counted) -> Sample:
    larger = replace(counted, rows=2 * counted.rows, peak_bytes=counted.peak_bytes + counted.saved_bytes)
    return Sample(settings, counted, Peak.of(counted, larger))


def test_the_figures_of_a_lora_learner_do_not_get_worse(lora: tuple[TrainingSettings, Counted]) -> None:
    figures = sample(*lora).figures(H200)
    assert figures.keys() == {*BOUNDS, "teraflop_per_sample", "largest_micro_batch"}
    assert {name: figures[name] for name, most in BOUNDS.items() if figures[name] > most} == {}
    assert figures["largest_micro_batch"] >= 800_000
    assert sample(*lora).learner().teraflop <= 1.85e-5
    assert 0 < figures["learner_ms_per_sample"] < figures["end_to_end_ms_per_sample"]


def test_parts_add_up(lora: tuple[TrainingSettings, Counted]) -> None:
    found = sample(*lora)
    learner = found.learner()
    assert learner.milliseconds == pytest.approx(sum(own.milliseconds for own in found.parts().values()))
    assert learner.forwards == 1 + 1 / lora[0].replay.segment_length
    assert found.act().forwards == pytest.approx(1 / found.uses)
    parts = found.parts()
    assert 0.5 < parts["backward"].teraflop / parts["forward and loss"].teraflop < 2
    assert parts["bootstrap"].teraflop < parts["forward and loss"].teraflop / 4


def test_arithmetic_in_float32_costs_more(lora: tuple[TrainingSettings, Counted]) -> None:
    """What ``lora.dtype=auto`` gained: converted inputs, and a product and a sum apart for every adapter."""
    _, cheap = lora
    _, dear = run(lora=LoraSettings(dtype="float32"))
    assert dear.forward.kernels > cheap.forward.kernels and dear.backward.kernels > cheap.backward.kernels
    assert dear.saved_bytes > 1.1 * cheap.saved_bytes
    assert dear.forward.bytes > cheap.forward.bytes and dear.backward.bytes > cheap.backward.bytes


def test_while_only_the_value_trains_there_is_no_backward_pass_of_the_policy(
    lora: tuple[TrainingSettings, Counted],
) -> None:
    _, whole = lora
    _, value_only = run(value_only=True)
    assert value_only.backward.flops < 0.1 * whole.backward.flops
    assert value_only.backward.kernels < 0.2 * whole.backward.kernels


def test_kept_features_spare_the_towers(lora: tuple[TrainingSettings, Counted]) -> None:
    settings, whole = lora
    cached = count(replace(settings, replay=replace(settings.replay, cache_features=True)), H200, 2)
    assert cached.forward.flops < 0.95 * whole.forward.flops
    assert cached.bootstrap.flops < 0.95 * whole.bootstrap.flops
    assert cached.act.flops > whole.act.flops, "the last observations of segments, once more"
    assert cached.saved_bytes <= whole.saved_bytes


@pytest.mark.slow
def test_the_page_has_what_is_counted_at_7b(capsys: pytest.CaptureFixture[str]) -> None:
    """Each row of the table that has a command of its own, and the goal."""
    command = "cost experiment=libero_spatial_oft7b_1gpu"
    found = {}
    for changes in ("card=H200", "learner.micro_batch_segments=8", "replay.cache_features=true"):
        assert benchmark.main([*command.split(), *changes.split()]) == 0
        figures = json.loads(capsys.readouterr().out.splitlines()[-1])
        found[changes] = (figures["learner_ms_per_sample"], figures["end_to_end_ms_per_sample"])
        assert (figures["host_waits_per_micro_batch"], figures["host_waits_per_update"]) == (0, 2)
        row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{changes}`"))
        shown = tuple(float(cell) for cell in re.findall(r"\| (\d+\.\d+) ", row))
        assert shown == pytest.approx(found[changes], abs=0.01)
    learner, end_to_end = found["card=H200"]
    assert learner <= 21 and end_to_end <= 27
    assert figures["largest_micro_batch"] >= 75
