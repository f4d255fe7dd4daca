"""Metrics on disk: one flat JSON object an iteration.

``metrics.jsonl`` holds only what the seed decides, so two runs of one configuration write the same bytes.
Clock readings of the same iterations go to ``timings.jsonl``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from gipo_envs.errors import UserError
from gipo_vla import foreign
from gipo_vla.telemetry.console import console

Metrics = Mapping[str, Any]
Row = dict[str, Any]


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
        mode = "r+b" if path.exists() else "w+b"
        self._file = open(path, mode, buffering=0, opener=foreign.without_links)  # noqa: SIM115
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
    with foreign.open_regular(path, foreign.LARGEST_LINES) as file:
        for line in file:
            row = _row(line, path) if line.endswith(b"\n") else None
            if row is None or row.get("iteration", math.inf) > last_iteration:
                break
            size += len(line)
    return size


_REQUIRED = {
    "metrics": ("iteration", "env_steps"),
    "timings": ("iteration", "seconds"),
    "evaluations": ("env_steps", "success_once"),
}
"""What those who read the rows of a run's files rely on, by the stem of the file's name."""


def _row(line: bytes, path: Path) -> Row | None:
    """A row of one of a run's files; None where the line is none."""
    try:
        row = foreign.parse_json(line)
    except ValueError:
        return None
    return row if is_row(row, _REQUIRED[path.stem]) else None


def is_row(row: Any, required: Sequence[str]) -> bool:
    """Whether a value is a row of a run's file: finite numbers by name, or None where there is none; text
    only under ``mode``, and two numbers under ``..._interval_95``.

    Args:
        required: names that must be there, with a value.
    """
    if not isinstance(row, dict) or any(row.get(name) is None for name in required):
        return False
    counts = [row[name] for name in ("iteration", "env_steps") if name in row]
    whole = all(type(count) is int and 0 <= count < 2**53 for count in counts)
    return whole and all(fits(name, value) for name, value in row.items())


def fits(name: str, value: Any) -> bool:
    """Whether a row may hold a value under a name; see ``is_row``."""
    if value is None:
        return True
    if name == "mode":
        return isinstance(value, str)
    if name.endswith("_interval_95"):
        return isinstance(value, list) and len(value) == 2 and all(map(foreign.is_number, value))
    return isinstance(value, bool) or foreign.is_number(value)


def _line(row: Metrics) -> str:
    # JSON has no NaN or infinity: what is not finite is absent.
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite) + "\n"


def replace_file(path: Path, data: str | bytes) -> None:
    """Write a file as a whole: no reader ever sees half of it, whoever else writes it at the same time."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb", opener=foreign.without_links) as file:
        file.write(data.encode() if isinstance(data, str) else data)
    temporary.replace(path)


def is_being_written(temporary: Path) -> bool:
    """Whether a temporary file of ``replace_file`` is that of a process of this machine that still lives."""
    process = temporary.name.split(".")[-2]
    return process.isdecimal() and int(process) < 2**31 and psutil.pid_exists(int(process))


def read_json_lines(path: Path) -> list[Row]:
    """The rows of a run's file, without a last line that was cut short; none if there is no file.

    Raises:
        UserError: the file cannot be read, or a line of it is no row (see ``is_row``).
    """
    required = _REQUIRED[path.stem]
    rows = []
    for number, row in enumerate(foreign.json_lines(path), start=1):
        if not is_row(row, required):
            raise UserError(
                f"{path}: line {number} has no {' and '.join(required[:2])}, or something else than numbers: "
                "it is not a run's"
            )
        rows.append(row)
    return rows


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over the rows that have it; metrics named ``..._max`` keep their maximum."""
    merged: dict[str, float] = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row[name] for row in rows if name in row]
        merged[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    return merged
