"""State keys: which states of a group's episodes count as one.

All functions here number states: equal numbers, same node. They are pure, look at a group as a whole, and
give the same partition in whatever order its episodes come.

Two kinds:

- a **grid** over landmarks: positions in cells whose centre is where the group began, so that what has not
  moved never lies on the border between two cells, and truths (gripper closed, goal predicates) as they are;
- **clusters** of features: principal components, then k-means, fitted to the group.

Shape suffixes: S states of all episodes, F numbers that describe a state.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

Ids = NDArray[np.int64]


def number_rows(rows: NDArray[np.int64]) -> Ids:
    """Numbers 0, 1, ... (S,) of rows (S, F): the same for equal rows, ascending with their order."""
    low = rows.min(axis=0)
    sizes = rows.max(axis=0) - low + 1
    try:
        # One number a row, where the product of the ranges fits in 64 bits: they sort ten times faster.
        rows = np.ravel_multi_index(tuple((rows - low).T), tuple(sizes.tolist()))
        return np.unique(rows, return_inverse=True)[1].astype(np.int64)
    except ValueError:
        return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def grid_ids(
    landmarks: NDArray[Any], origin: NDArray[Any], cell: float, is_position: NDArray[np.bool_]
) -> Ids:
    """Numbers (S,) of states on a grid.

    Args:
        landmarks: (S, F), metres and truths.
        origin: (F,) the state whose positions are centres of cells.
        cell: metres.
        is_position: (F,); the others are truths.
    """
    scale = np.where(is_position, 1.0 / cell, 1.0)
    shifted = landmarks.astype(np.float64) - np.where(is_position, origin.astype(np.float64), 0.0)
    return number_rows(np.rint(shifted * scale).astype(np.int64))


def cluster_ids(features: NDArray[Any], dimensions: int, clusters: int) -> Ids:
    """Numbers (S,) of states by the cluster of their features.

    Args:
        features: (S, F).
        dimensions: principal components kept, at most.
        clusters: at most; no more than there are different states.
    """
    distinct, place = np.unique(features.astype(np.float64), axis=0, return_inverse=True)
    # Each state as often as it occurs, in an order of its own: which episode came first must not matter.
    points = distinct[np.sort(place.reshape(-1))]
    centred = points - points.mean(axis=0)
    components = np.linalg.svd(centred, full_matrices=False)[2][:dimensions]
    projected = centred @ components.T
    count = min(clusters, len(distinct))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty cluster: there were fewer
        centres, _ = kmeans2(projected, count, minit="++", seed=0)
    own = (distinct - points.mean(axis=0)) @ components.T
    squared = (own**2).sum(1)[:, None] - 2 * own @ centres.T + (centres**2).sum(1)
    return number_rows(squared.argmin(axis=1)[place.reshape(-1), None])
