"""The mathematics of GraphGPO (arXiv 2605.26684): which step of an episode brought it nearer to success?

The states of a group's episodes are nodes, numbered 0 to N - 1; transitions are edges of cost 1. Every
occurrence of an edge is kept, since the statistics count them. A virtual node SUCCESS, number N, is entered
by the transition in which an episode first succeeds; what follows in an episode that goes on is left out.

    d(s)    = length of the shortest path from s to SUCCESS     (one reverse Dijkstra, scipy's)
    r(s,s') = w^(d(s') + c)  or  -(d(s') + c)                   reward of an edge
    A(s,s') = (r - mean) / std over all occurrences of edges that leave s; sample standard deviation

A node that cannot reach SUCCESS has the greatest finite distance plus 1. Where only one edge occurrence
leaves a node, or all have the same reward, A is 0: there was no choice to learn from.

Shape suffixes: N nodes, E occurrences of edges, T transitions of an episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy  # its parts load when first used
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
EdgeReward = Literal["geometric", "linear"]


@dataclass(frozen=True)
class Edges:
    """Occurrences of transitions, episode after episode."""

    sources: Ids
    """(E,) node left."""
    targets: Ids
    """(E,) node entered; N for SUCCESS."""
    counts: tuple[int, ...]
    """Transitions of each episode up to its first success, or all of them."""


def edges(nodes: Sequence[Ids], first_success: Sequence[int | None], success: int) -> Edges:
    """The edges of episodes.

    Args:
        nodes: (T + 1,) of each episode, before each transition and after the last.
        first_success: transition in which each episode first succeeds; None: in none.
        success: number of the node SUCCESS.
    """
    sources, targets, counts = [], [], []
    for own, first in zip(nodes, first_success, strict=True):
        count = len(own) - 1 if first is None else first + 1
        target = own[1 : count + 1].copy()
        if first is not None:
            target[-1] = success
        sources.append(own[:count])
        targets.append(target)
        counts.append(count)
    return Edges(np.concatenate(sources), np.concatenate(targets), tuple(counts))


def distances_to_success(sources: Ids, targets: Ids, nodes: int) -> Floats:
    """(N + 1,) steps from each node to SUCCESS, the last; infinite where there is no path."""
    backwards = scipy.sparse.csr_matrix(
        (np.ones(len(sources)), (targets, sources)), shape=(nodes + 1, nodes + 1)
    )
    distances: Floats = scipy.sparse.csgraph.dijkstra(
        backwards, directed=True, indices=nodes, unweighted=True
    )
    return distances


def with_unreachable(distances: Floats) -> Floats:
    """Infinite distances replaced by the greatest finite one plus 1."""
    finite = np.isfinite(distances)
    return np.where(finite, distances, distances[finite].max() + 1.0)


def edge_rewards(distances: Floats, kind: EdgeReward, decay: float) -> Floats:
    """Rewards of edges that lead to nodes at these distances: ``decay^(d + 1)`` or ``-(d + 1)``.

    The paper's factor r and its c, here 1, cancel when rewards are standardised, and so are no settings.
    """
    return decay ** (distances + 1.0) if kind == "geometric" else -(distances + 1.0)


def standardized_by_source(rewards: Floats, sources: Ids) -> Floats:
    """(E,) rewards standardised over the occurrences that leave the same node; 0 where that is impossible."""
    _, first, place, count = np.unique(sources, return_index=True, return_inverse=True, return_counts=True)
    # Measured from one of them, so that equal rewards differ by exactly 0 and rounding invents no variance.
    shifted = rewards - rewards[first][place]
    centred = shifted - (np.bincount(place, shifted) / count)[place]
    variance = np.bincount(place, centred**2) / np.maximum(count - 1, 1)
    std = np.sqrt(variance)[place]
    return np.divide(centred, std, out=np.zeros_like(centred), where=std > 0)


def split_by_episode(values: NDArray[Any], counts: Sequence[int], lengths: Sequence[int]) -> list[Floats]:
    """Values (E,) of edges as arrays (T,) of episodes, 0 for the transitions that are no edges."""
    parts = np.split(values, np.cumsum(counts)[:-1])
    return [np.pad(own, (0, length - len(own))) for own, length in zip(parts, lengths, strict=True)]
