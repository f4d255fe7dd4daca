"""Metrics on disk."""

from __future__ import annotations

import json
from pathlib import Path

from gipo_vla.telemetry.metrics import JsonLines, mean_of, read_json_lines


def test_lines_are_plain_json_whatever_the_values(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    lines.write({"iteration": 1, "a": 0.1, "b": float("nan"), "c": float("inf"), "d": None})
    lines.close()
    assert json.loads(path.read_text()) == {"iteration": 1, "a": 0.1, "b": None, "c": None, "d": None}


def test_resuming_removes_what_will_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    for iteration in range(1, 6):
        lines.write({"iteration": iteration, "env_steps": 10 * iteration})
    lines.close()
    path.write_text(path.read_text() + '{"iteration": 6, "cut sho')  # killed in mid-write
    lines = JsonLines(path, last_iteration=3)
    lines.write({"iteration": 4, "env_steps": 40, "again": True})
    lines.close()
    assert [row["iteration"] for row in read_json_lines(path)] == [1, 2, 3, 4]
    assert read_json_lines(path)[-1]["again"]


def test_no_file_means_no_rows(tmp_path: Path) -> None:
    assert read_json_lines(tmp_path / "metrics.jsonl") == []


def test_mean_over_updates_keeps_maxima(tmp_path: Path) -> None:
    rows = [{"a": 1.0, "lag_max": 3.0}, {"a": 3.0, "lag_max": 5.0, "b": 2.0}]
    assert mean_of(rows) == {"a": 2.0, "lag_max": 5.0, "b": 2.0}
