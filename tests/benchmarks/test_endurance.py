"""What a long run holds on to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gipo_envs.errors import UserError
from gipo_vla import benchmark
from gipo_vla.benchmarks import endurance


def samples(**quantities: np.ndarray) -> list[dict[str, float]]:
    """Those of a run in which all other quantities stand still."""
    count = len(next(iter(quantities.values())))
    constant = dict.fromkeys(endurance.QUANTITIES, 7.0)
    return [
        constant | {"iteration": float(index)} | {name: float(own[index]) for name, own in quantities.items()}
        for index in range(1, count)
    ]


def test_a_leak_has_a_slope_and_what_fills_up_at_the_start_has_none() -> None:
    iterations = np.arange(400)
    noise = np.random.default_rng(0).normal(0, 1.0, 400)
    leaking = 500 + 0.05 * iterations + noise
    found = endurance.slopes(samples(trainer_mib=leaking, disk_mib=np.minimum(iterations, 90), threads=noise))
    leak = found["trainer_mib"]
    low, high = leak["interval_95"]
    assert low < 50 < high and high - low < 10, "50 MiB over 1,000 iterations"
    assert leak["end"] - leak["begin"] == pytest.approx(0.05 * 200, abs=0.5), "between the thirds' middles"
    assert found["disk_mib"]["slope_per_1000"] == 0.0 and found["disk_mib"]["interval_95"] == [0.0, 0.0]
    low, high = found["threads"]["interval_95"]
    assert low < 0 < high
    assert found["descriptors"] == {"begin": 7, "end": 7, "slope_per_1000": 0, "interval_95": [0, 0]}


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(UserError, match="9 samples are too few for a slope"):
        endurance.slopes(samples(threads=np.zeros(12)))
    with pytest.raises(UserError, match="out is missing"):
        benchmark.main(["endurance", "experiment=point_reach"])


@pytest.mark.medium
def test_a_run_is_watched_from_its_first_iteration_to_its_last(
    tmp_path: Path, tiny_overrides: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    few = (*tiny_overrides, "iterations=20")
    benchmark.main(["endurance", f"out={tmp_path}", "seconds=0.01", *few])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = [json.loads(line) for line in (tmp_path / "resources.jsonl").read_text().splitlines()]
    assert len(rows) == told["samples"] > 10 and told["iterations"] < 20
    assert all(row["worker_mib"] > 5 and row["descriptors"] > 10 for row in rows), "its worker is there"
    assert told["shared_mib"]["begin"] >= 0 and told["trainer_mib"]["begin"] > 100
    assert (tmp_path / "run/finished.json").exists()
