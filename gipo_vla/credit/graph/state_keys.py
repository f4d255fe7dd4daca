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
import scipy  # its parts load when first used
import torch
from numpy.typing import NDArray

Ids = NDArray[np.int64]

ROUNDS = 5
"""Rounds of k-means. It starts from an even spread, and nodes need not be optimal clusters."""
FITTED = 1024
"""Points, at most, that principal components are fitted to: every nth of them."""


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
    rows = np.ascontiguousarray(features, np.float64)
    # In an order of their own, that of their bytes: which episode came first must not matter.
    as_bytes = np.dtype((np.void, rows.itemsize * rows.shape[1]))
    order = np.argsort(rows.view(as_bytes).reshape(-1), kind="stable")
    projected = _principal_components(rows[order], dimensions)
    # Evenly along the first component: nothing is drawn, and nothing takes a loop.
    along = np.argsort(projected[:, 0], kind="stable")
    count = min(clusters, len(rows))
    first = projected[along[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty cluster: there were fewer
        _, labels = scipy.cluster.vq.kmeans2(projected, first, iter=ROUNDS, minit="matrix")
    ids = np.empty(len(rows), np.int64)
    ids[order] = labels
    return number_rows(ids[:, None])


def _principal_components(points: NDArray[np.float64], dimensions: int) -> NDArray[np.float64]:
    """Points (S, F) in the coordinates of their first components."""
    centred = torch.from_numpy(points - points.mean(axis=0))
    few = centred[:: -(-len(points) // FITTED)]
    # The same directions from the smaller matrix, where there are more points than numbers a point.
    if (size := few.shape[1]) < len(few):
        largest = (max(size - dimensions, 0), size - 1)
        directions = torch.from_numpy(
            scipy.linalg.eigh((few.T @ few).numpy(), subset_by_index=largest)[1]
        ).flip(1)
    else:
        directions = torch.linalg.svd(few, full_matrices=False)[2][:dimensions].T
    projected: NDArray[np.float64] = (centred @ directions).numpy()
    return projected
