"""Figures, a line at a time on disk, so that a suite that is killed has still told.

A line has ``part`` and either ``figures``, or ``outcome`` (measured, failed, stopped at its box, left out)
with ``reason`` and ``seconds``. Lines are appended by the suite and by the process of a part alike. A later
line replaces an earlier one of the same part and ``key``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gipo_vla import foreign

Line = dict[str, Any]


class Records:
    """The lines of a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, part: str, **values: Any) -> None:
        """Append a line, whole or not at all."""
        text = json.dumps({"part": part, **values}) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(text.encode())

    def read(self) -> list[Line]:
        return list(foreign.json_lines(self.path))


def outcomes(lines: Sequence[Line]) -> dict[str, Line]:
    """What became of each part at last."""
    return {line["part"]: line for line in lines if "outcome" in line}


def figures(lines: Sequence[Line], part: str) -> list[dict[str, Any]]:
    """The figures of a part, by key in the order in which they came."""
    found = {}
    for line in lines:
        if line["part"] == part and "figures" in line:
            found[line.get("key")] = line["figures"]
    return list(found.values())
