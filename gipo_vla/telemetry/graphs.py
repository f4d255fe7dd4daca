"""Graphs of states on disk: ``graphs/NNNNNN.json`` of a run folder, for the picture in its report."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gipo_vla.telemetry.metrics import replace_file

MOST = 4
"""Files of a run, evenly spread over its iterations."""


class GraphFiles:
    """Writes what a credit last saw, now and then. Changes nothing of the run, and a full disk costs only the
    picture.

    Args:
        folder: made when there is something to write.
        iterations: of the whole run.
    """

    def __init__(self, folder: Path, iterations: int) -> None:
        self.folder, self.every = folder, -(-iterations // MOST)

    def after(self, iteration: int, snapshot: Callable[[], dict[str, Any] | None]) -> None:
        """Called after each iteration; asks for the snapshot only when it is time."""
        if iteration % self.every:
            return
        values = snapshot()
        if values is None:
            return
        with suppress(OSError):
            self.folder.mkdir(exist_ok=True)
            text = json.dumps({"iteration": iteration} | values)
            replace_file(self.folder / f"{iteration:06d}.json", text)


def newest_graph(run_folder: Path) -> dict[str, Any] | None:
    """The last graph of a run that has a path to success, else the last one; None if there is none that can
    be read."""
    found: dict[str, Any] | None = None
    for path in sorted((run_folder / "graphs").glob("*.json"), reverse=True):
        with suppress(OSError, ValueError):
            graph: dict[str, Any] = json.loads(path.read_text())
            if any(distance is not None for *_, distance in graph["nodes"]):
                return graph
            found = found or graph
    return found
