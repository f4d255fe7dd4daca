"""The learning curve is drawn from whatever rows there are."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import pytest

from gipo_vla.telemetry.plots import learning_curve

ROW = {
    "env_steps": 100,
    "success_once_recent": 0.5,
    "staleness/p95_abs_log_ratio": 0.3,
    "staleness/effective_sample_size": 0.9,
    "staleness/lag_iterations_mean": 2.0,
}
EVALUATION = {"env_steps": 100, "success_once": 0.8, "success_once_interval_95": [0.6, 0.9], "mode": "greedy"}


@pytest.mark.parametrize("evaluations", [[], [EVALUATION]])
def test_picture_is_written(tmp_path: Path, evaluations: list[dict]) -> None:
    rows = [ROW, ROW | {"env_steps": 200, "success_once_recent": None}]
    learning_curve(tmp_path / "curve.png", "title", rows, evaluations, EVALUATION | {"env_steps": 200})
    picture = iio.imread(tmp_path / "curve.png")
    assert picture.shape[0] > 300
    assert picture.std() > 10
