"""The suite's learner by size of its micro-batch, on a device that is not there."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gipo_vla.benchmarks import suite
from gipo_vla.benchmarks.fake_device import HostWaits
from gipo_vla.benchmarks.policy import Trial
from gipo_vla.benchmarks.suite import counted, network
from gipo_vla.benchmarks.suite.job import Job
from gipo_vla.benchmarks.suite.records import Records, figures
from gipo_vla.benchmarks.suite.table import ROWS
from gipo_vla.settings import runs
from tests.learner import vla


def test_sizes_of_the_micro_batch(gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No CPU tensor meets one of the device; half of the size and twice of it follow the settings' own."""
    # It wants a generator of the device.
    monkeypatch.setattr(network, "log_ratio_floor", lambda *_: torch.zeros(9, device=gpu))
    monkeypatch.setattr(network, "MICRO_BATCHES", 2)
    settings = runs.load("train", [*suite.SIZES["tiny"], "learner.precision=bfloat16"])
    settings = replace(settings, policy=vla.settings(training="lora"))
    records = Records(tmp_path / "suite.jsonl")
    job = Job(settings, records, ("learner",), ends=time.monotonic() + 3600.0)
    trial = Trial(settings.policy, gpu, 4, 8, 1.6, 7)
    with HostWaits():
        network.Network(job, trial, trial.build(torch.bfloat16)).learner_by_micro_batch()
    found = figures(records.read(), "learner")
    assert [one["rows"] for one in found] == [8, 4, 16, 32, 64]
    assert all(one["updates_skipped"] == 0 for one in found)


def test_what_is_counted_stands_beside_what_is_measured(tmp_path: Path) -> None:
    """The real count: the table's rows ask for figures that it has to have."""
    settings = runs.load("train", [*suite.SIZES["tiny"], "learner.precision=bfloat16"])
    settings = replace(settings, policy=vla.settings(training="lora"))
    records = Records(tmp_path / "suite.jsonl")
    counted.measure(Job(settings, records, ("counted",), ends=time.monotonic() + 3600.0))
    [found] = figures(records.read(), "counted")
    memory = {"device_bytes": None, "device_bytes_planned": None}
    floor = {"mean": 0.0, "p999": 0.0, "max": 0.0}
    speed = {"samples_per_second": 1.0, "updates_skipped": 0, "floor_after_updates": floor, **memory}
    rows = settings.micro_batch_segments * settings.replay.segment_length
    learner = next(iter(ROWS["learner"]({"rows": rows, **speed}, found, "")))
    assert learner[-1] == f"{1e3 / found['learner_ms_per_sample']:.1f}"
    other = next(iter(ROWS["learner"]({"rows": 2 * rows, **speed}, found, "")))
    assert other[-1] == "", "it was counted for one size"
    acted = {"batch": settings.rollout.envs, "of_the_run": True, "decisions_per_second": 1.0, **memory}
    assert float(next(iter(ROWS["act"](acted, found, "")))[-1]) > 0
