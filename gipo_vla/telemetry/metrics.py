"""Metrics on disk: one flat JSON object an iteration.

``metrics.jsonl`` holds only what the seed decides, so two runs of one configuration write the same bytes.
Clock readings of the same iterations go to ``timings.jsonl``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Metrics = Mapping[str, Any]


class JsonLines:
    """Appends flat objects to a file; each line is on disk before the next iteration begins.

    Args:
        path: the file.
        last_iteration: lines of later iterations are removed first (what a resumed run will write again).
    """

    def __init__(self, path: Path, last_iteration: int = 0) -> None:
        self.path = path
        kept = [row for row in read_json_lines(path) if row["iteration"] <= last_iteration]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(_line(row) for row in kept))
        os.replace(temporary, path)
        self._file = path.open("a", buffering=1)

    def write(self, row: Metrics) -> None:
        self._file.write(_line(row))

    def close(self) -> None:
        self._file.close()


def _line(row: Metrics) -> str:
    # JSON has no NaN or infinity: what is not finite is absent.
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite) + "\n"


def read_json_lines(path: Path) -> list[dict[str, float]]:
    """The rows of a file, without a last line that was cut short; none if there is no file."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over the rows that have it; metrics named ``..._max`` keep their maximum."""
    merged: dict[str, float] = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row[name] for row in rows if name in row]
        merged[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    return merged
