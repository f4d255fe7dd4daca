"""A group's graph as a small JSON value, for the picture in a report.

nodes     [across, up, distance]   mean position of the hand, metres; steps to success, null without a path
edges     [from, to, count]        numbers of nodes; -1 is SUCCESS
start     number of the node in which all episodes begin
axes      names of the two landmarks that place the nodes
episodes  number of episodes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gipo_envs import Landmark
from gipo_vla.credit.graph.state_graph import Edges

MOST_EDGES = 4000
"""Different edges that are kept, those with the most occurrences: about 60 kB."""


def hand_axes(landmarks: Sequence[Landmark]) -> list[int]:
    """Indices of the landmarks that place a node: the hand's x and z, its y where it moves in a plane; none
    where the environment does not say."""
    names = [landmark.name for landmark in landmarks]
    axes = [names.index(name) for name in ("hand x", "hand z", "hand y") if name in names]
    return axes[:2] if len(axes) > 1 else []


@dataclass(frozen=True)
class GraphSnapshot:
    """References to what the credit computed anyway; turned into JSON only when somebody asks."""

    axes: tuple[str, ...]
    places: NDArray[np.float32]
    """(S, 2) of the hand in each state of the group."""
    ids: NDArray[np.int64]
    """(S,) node of each state."""
    edges: Edges
    distances: NDArray[np.float64] | None
    """(N + 1,) of the nodes and SUCCESS."""
    episodes: int

    def to_json(self) -> dict[str, Any]:
        nodes, place, count = np.unique(self.ids, return_inverse=True, return_counts=True)
        centres = np.stack([np.bincount(place, axis) / count for axis in self.places.T], axis=1)
        distances = np.full(len(nodes), np.inf) if self.distances is None else self.distances[nodes]
        pairs, weights = np.unique(
            np.stack([self.edges.sources, self.edges.targets], axis=1), axis=0, return_counts=True
        )
        kept = np.sort(np.argsort(-weights, kind="stable")[:MOST_EDGES])
        number = {int(node): index for index, node in enumerate(nodes)}
        return {
            "axes": list(self.axes),
            "episodes": self.episodes,
            "start": number[int(self.ids[0])],
            "nodes": [
                [round(float(x), 4), round(float(y), 4), int(d) if np.isfinite(d) else None]
                for (x, y), d in zip(centres, distances)
            ],
            "edges": [
                [number[int(source)], number.get(int(target), -1), int(weight)]
                for (source, target), weight in zip(pairs[kept], weights[kept])
            ],
        }
