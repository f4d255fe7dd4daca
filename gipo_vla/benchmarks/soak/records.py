"""What happened, a line at a time on disk, so that a soak that is killed has still told; and what it comes
to."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from gipo_vla import foreign
from gipo_vla.telemetry import console

Record = dict[str, Any]


class Records:
    """Lines of faults and of runs, those of earlier sessions in the same folder first.

    A fault has ``fault`` and ``witnessed`` (what was seen, empty: nothing); a run that ended has
    ``problems``, ``compared`` (``bytes`` or ``interval``) and ``finished``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.all: list[Record] = list(foreign.json_lines(path))
        self._lock = threading.Lock()

    def add(self, **record: Any) -> None:
        with self._lock:
            self.all.append(record)
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    @property
    def next_run(self) -> int:
        """A number that no run has."""
        return max((one["run"] for one in self.all), default=-1) + 1


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """The figures for programs; ``lost`` has a line for everything that was."""
    faults = [one for one in records if "fault" in one]
    runs = [one for one in records if "problems" in one]
    whole = [one for one in runs if one["finished"] and not one["problems"]]
    witnessed = Counter(one["fault"] for one in faults if one["witnessed"])
    return {
        "faults_drawn": len(faults),
        "faults_witnessed": witnessed.total(),
        "launches": sum(one["launches"] for one in runs),
        "runs": len(runs),
        "runs_finished": sum(one["finished"] for one in runs),
        "runs_equal": sum(one["compared"] == "bytes" for one in whole),
        "runs_within_interval": sum(one["compared"] == "interval" for one in whole),
        "lost": [f"{one['kind']} {one['run']}: {text}" for one in runs for text in one["problems"]],
        "witnessed_by_fault": dict(sorted(witnessed.items())),
    }


def table(records: Sequence[Record], kinds: Sequence[str]) -> Table:
    """For people: witnessed of drawn by fault and kind, and what became of the runs."""
    faults = [one for one in records if "fault" in one]
    runs = [one for one in records if "problems" in one]

    def row(name: str, parts: Mapping[str, Sequence[bool]]) -> tuple[str, ...]:
        cells = [f"{sum(own)}/{len(own)}" if (own := parts[kind]) else "" for kind in kinds]
        every = [one for kind in kinds for one in parts[kind]]
        return (name, *cells, f"{sum(every)}/{len(every)}")

    rows = []
    for name in sorted({one["fault"] for one in faults}):
        own = [one for one in faults if one["fault"] == name]
        seen = {kind: [bool(one["witnessed"]) for one in own if one["kind"] == kind] for kind in kinds}
        rows.append(row(name, seen))
    every = {kind: [bool(one["witnessed"]) for one in faults if one["kind"] == kind] for kind in kinds}
    rows.append(row("all faults", every))
    for name, good in (
        ("runs finished", lambda one: one["finished"]),
        ("runs with nothing lost", lambda one: one["finished"] and not one["problems"]),
    ):
        rows.append(row(name, {kind: [good(one) for one in runs if one["kind"] == kind] for kind in kinds}))
    return console.table("faults: witnessed/drawn", ("", *kinds, "all"), rows)
