"""Finding run folders and reading what they hold.

A run folder is one that holds ``metrics.jsonl``. ``config.yaml``, ``evaluation.json`` (held-out episodes at
the end), ``evaluations.jsonl`` (held-out episodes on the way) and ``graphs/`` (graphs of states) are used
where they exist. An archive (``archive``) holds the small data of many finished runs, without checkpoints,
and reads like their folders.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from gipo_envs.errors import UserError
from gipo_vla.reporting import archive, checks
from gipo_vla.telemetry.graphs import newest_graph

Row = dict[str, Any]
Value = str | float | int | bool | None

ROWS_KEPT = 2000
"""Iterations of one run that are kept in memory, evenly spread: curves need no more, and hundreds of long
runs fit."""


@dataclass(frozen=True)
class Run:
    """One run, as its folder tells it."""

    name: str
    """Path below the folder that the user named, or that folder's own name."""
    config: Mapping[str, Value]
    """Flat: ``objective.sigma`` -> 0.5. Lists as JSON text."""
    rows: Sequence[Row]
    """Lines of metrics.jsonl; never empty."""
    evaluation: Row | None = None
    evaluations: Sequence[Row] = ()
    finished: bool = False
    """finished.json exists."""
    graph: Row | None = None
    """A late graph of states, with credit=graph; see ``gipo_vla.credit.graph.snapshot``."""
    settings: Row = field(default_factory=dict)
    """config.yaml as it is nested on disk."""
    overrides: tuple[str, ...] | None = None
    """What a sweep started the run with; None: no sweep did, or it is not known."""

    @property
    def seed(self) -> Value:
        return self.config.get("seed")

    @property
    def iterations(self) -> int:
        """Iterations done."""
        return int(self.rows[-1]["iteration"])

    @property
    def complete(self) -> bool:
        """It did all iterations that it was set; small data kept without finished.json counts by that."""
        planned = self.config.get("iterations")
        return self.finished or (isinstance(planned, int) and self.iterations >= planned)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The rows as a table; NaN where a row does not have a value."""
        return pd.DataFrame(self.rows)

    def known(self, metric: str) -> pd.DataFrame:
        """``env_steps`` and a metric, where it is known."""
        return self.frame.reindex(columns=["env_steps", metric]).dropna()

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks trained on, sorted."""
        if self.evaluation and self.evaluation.get("tasks"):
            return tuple(sorted(self.evaluation["tasks"]))
        logged = {name.split("/")[1] for name in self.rows[-1] if name.startswith("task/")}
        task = self.settings.get("env", {}).get("task", "task")
        return tuple(sorted(logged or map(str, task if isinstance(task, list) else [task])))


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Every run in ``folders`` at any depth, sorted by name, and remarks on those that could not be used.

    Raises:
        UserError: a folder does not exist or holds no run, or no run has any metrics.
    """
    found: dict[tuple[Path, str], tuple[str, Row | None]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: name a run folder, or a folder that contains some")
        own = list(_runs_below(folder))
        if not own:
            raise UserError(f"{folder} contains no run: no folder in it holds a metrics.jsonl")
        taken = {name for name, _ in found.values()}
        for path, record in own:
            name = path.relative_to(folder).as_posix() if path != folder else path.resolve().name
            identity = path.resolve(), record["name"] if record else ""
            if identity not in found:
                found[identity] = _unused(name, folder, taken), record
    places = {path.parent for (path, _), (_, record) in found.items() if record is None}
    listed = {place: archive.overrides_of(place / "sweep.json") for place in places}
    runs, remarks = [], []
    for (path, _), (name, record) in found.items():
        if record is None:
            run = read_run(path, name, listed[path.parent].get(path.name.rpartition("-")[2]))
        else:
            run = _from_record(record, name)
        if run is None:
            remarks.append(f"{name} is left out: its metrics.jsonl holds no iteration yet")
        else:
            runs.append(run)
    if not runs:
        names = sorted(name for name, _ in found.values())
        raise UserError(
            f"metrics.jsonl of {', '.join(names[:3])} is empty: there is nothing to report "
            "before the first iteration has ended"
        )
    return sorted(runs, key=lambda run: run.name), sorted(remarks)


def _unused(name: str, folder: Path, taken: Container[str]) -> str:
    """``name``, with more of its path before it where two folders hold runs of one name."""
    for part in reversed(folder.resolve().parts):
        if name not in taken:
            break
        name = f"{part}/{name}"
    return name


def _runs_below(folder: Path) -> Iterator[tuple[Path, Row | None]]:
    """Run folders at any depth, and runs in archives with the folder that each would have."""
    for path, below, files in os.walk(folder):
        if "metrics.jsonl" in files:
            below.clear()  # nothing inside a run folder is another run
            yield Path(path), None
        below[:] = sorted(name for name in below if not name.startswith("."))
        for record in archive.read_folder(Path(path)):
            yield Path(path, record["name"]), record


def read_run(folder: Path, name: str | None = None, overrides: Sequence[str] | None = None) -> Run | None:
    """Read one run folder; None where metrics.jsonl holds no iteration.

    Args:
        folder: of the run.
        name: of the run in tables; None: that of the folder.
        overrides: what a sweep started the run with, where that is known.

    Raises:
        UserError: a file cannot be understood.
    """
    name = name or folder.resolve().name
    record = archive.record(folder, name, overrides=overrides)
    return _from_record(record, name, newest_graph(folder))


def _from_record(record: Row, name: str, graph: Row | None = None) -> Run | None:
    if (told := checks.rows_problem(record["metrics"])) is not None:
        raise UserError(f"metrics.jsonl of {name} {told}: it is not a run's")
    rows = archive.rows_of(record["metrics"])
    if not rows:
        return None
    settings = record.get("config") or {"experiment": name}
    return Run(
        name,
        flatten(settings),
        archive.thin(rows, ROWS_KEPT),
        evaluation=record.get("evaluation"),
        evaluations=archive.rows_of(record.get("evaluations", {})),
        finished="finished" in record,
        graph=graph,
        settings=settings,
        overrides=None if "overrides" not in record else tuple(record["overrides"]),
    )


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Nested settings with dotted keys; lists become JSON text, so that every value can be compared."""
    flat: dict[str, Value] = {}
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = json.dumps(value) if isinstance(value, list) else value
    return flat
