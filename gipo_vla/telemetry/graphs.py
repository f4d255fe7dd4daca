"""Graphs of states on disk: ``graphs/NNNNNN.json`` of a run folder, for the picture in its report."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gipo_envs.errors import UserError
from gipo_vla import foreign
from gipo_vla.telemetry.metrics import replace_file

MOST = 4
"""Files of a run, evenly spread over its iterations."""
MOST_READ = 100
"""Files that are looked at; a run that was lengthened has a few more."""
LARGEST = 2**22
"""Bytes of a file; the credit keeps to some hundred thousand."""


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
    for path in sorted((run_folder / "graphs").glob("*.json"), reverse=True)[:MOST_READ]:
        with suppress(UserError):
            graph = foreign.read_json(path, LARGEST)
            if not is_graph(graph):
                continue
            if any(distance is not None for *_, distance in graph["nodes"]):
                return graph
            found = found or graph
    return found


def is_graph(graph: dict[str, Any]) -> bool:
    """Whether a mapping is what ``gipo_vla.credit.graph.snapshot`` describes, so that it can be drawn."""
    nodes, edges, axes = (graph.get(name) for name in ("nodes", "edges", "axes"))
    if not (isinstance(nodes, list) and isinstance(edges, list) and isinstance(axes, list)):
        return False
    counts = [graph.get(name) for name in ("start", "iteration", "episodes")]
    return (
        all(_is_node(node) for node in nodes)
        and all(_is_edge(edge, len(nodes)) for edge in edges)
        and all(type(count) is int and 0 <= count < 2**53 for count in counts)
        and graph["start"] < len(nodes)
        and [type(name) for name in axes] == [str, str]
    )


def _is_node(node: Any) -> bool:
    """``[across, up, distance]``."""
    is_number = foreign.is_number
    whole = isinstance(node, list) and len(node) == 3
    return whole and all(map(is_number, node[:2])) and (node[2] is None or is_number(node[2]))


def _is_edge(edge: Any, nodes: int) -> bool:
    """``[from, to, count]``; -1 is success."""
    if not isinstance(edge, list) or [type(end) for end in edge] != [int, int, int]:
        return False
    source, target, count = edge
    return 0 <= source < nodes and -1 <= target < nodes and 0 < count < 2**31
