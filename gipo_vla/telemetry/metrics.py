"""Metrics on disk: one flat JSON object an iteration.

``metrics.jsonl`` holds only what the seed decides, so two runs of one configuration write the same bytes.
Clock readings of the same iterations go to ``timings.jsonl``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gipo_vla.telemetry.console import console

Metrics = Mapping[str, Any]


class JsonLines:
    """Appends flat objects to a file; each line is in it before the next iteration begins.

    On a full disk lines wait in memory and are tried again with the next one, so that the run continues and
    nothing is lost once there is room.

    Args:
        path: the file.
        last_iteration: lines of later iterations are cut off first (what a resumed run will write again).
    """

    def __init__(self, path: Path, last_iteration: int = 0) -> None:
        self.path = path
        self._pending = b""
        self._warned = False
        # Unbuffered, and written at a known place: half a line that a full disk left is written over.
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._size = _bytes_until(path, last_iteration)
        self._file.truncate(self._size)

    def write(self, row: Metrics) -> None:
        self._pending += _line(row).encode()
        self._flush()

    def _flush(self) -> None:
        try:
            self._file.seek(self._size)
            while self._pending:
                count = self._file.write(self._pending) or 0
                self._size += count
                self._pending = self._pending[count:]
        except OSError as error:
            if not self._warned:
                console.print(
                    f"warning: {self.path} cannot be written ({error.strerror}); its lines wait in memory "
                    "and the run continues",
                    soft_wrap=True,
                )
            self._warned = True
        else:
            self._warned = False

    def sync(self) -> None:
        """Force what was written to disk, as far as possible."""
        self._flush()
        with suppress(OSError):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Lines that still cannot be written are lost."""
        self._flush()
        self._file.close()


def _bytes_until(path: Path, last_iteration: int) -> int:
    """Length of the part of a file that holds whole lines of iterations up to this one."""
    size = 0
    with path.open("rb") as file:
        for line in file:
            try:
                wanted = line.endswith(b"\n") and json.loads(line)["iteration"] <= last_iteration
            except (ValueError, KeyError, TypeError):
                wanted = False
            if not wanted:
                break
            size += len(line)
    return size


def _line(row: Metrics) -> str:
    # JSON has no NaN or infinity: what is not finite is absent.
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite) + "\n"


def replace_file(path: Path, data: str | bytes) -> None:
    """Write a file as a whole: no reader ever sees half of it, whoever else writes it at the same time."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    temporary.replace(path)


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
