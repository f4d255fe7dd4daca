"""Segments: L consecutive transitions of one episode and the observation that follows.

A *transition* is one decision: what was seen, the tokens chosen, their log-probs under the behaviour policy,
and what came of them. A segment is the unit of storage, of sampling and of batches. Segments are plain
dictionaries of arrays with the fields of a ``SegmentLayout``; a batch of them has a leading axis N.

A shorter tail of an episode is padded; rows from ``length`` on are zero and never read. The observation that
follows the last transition is row ``length`` of the observations: one row more, so every image is stored
once.

Shape suffixes: L segment length, K chunk, D action dimensions, V bins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gipo_envs import EnvironmentSpec

Arrays = dict[str, NDArray[Any]]

OBSERVATION_PREFIX = "observation/"


@dataclass(frozen=True)
class Field:
    """Shape (without the axis of segments) and dtype of one array."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class SegmentLayout:
    """The arrays of a segment."""

    length: int
    """L."""
    chunk: int
    action_dims: int
    fields: dict[str, Field]

    @property
    def bytes_per_segment(self) -> int:
        return sum(int(np.prod(field.shape)) * field.dtype.itemsize for field in self.fields.values())

    def allocate(self, count: int) -> Arrays:
        """Zeroed arrays for ``count`` segments. The pages cost memory only once written."""
        return {name: np.zeros((count, *field.shape), field.dtype) for name, field in self.fields.items()}

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Names of the arrays of an observation, without the prefix."""
        return tuple(
            name.removeprefix(OBSERVATION_PREFIX)
            for name in self.fields
            if name.startswith(OBSERVATION_PREFIX)
        )


def layout(
    spec: EnvironmentSpec,
    length: int,
    chunk: int,
    action_dims: int,
    bins: int,
    store_logits: bool = False,
) -> SegmentLayout:
    """The fields that a policy on an environment needs.

    Args:
        length: transitions a segment, L.
        bins: ids a token can take; sets the integer type of the tokens.
        store_logits: keep float16 logits (L, K, D, V) of the behaviour policy, for its exact KL.
    """
    tokens_type = np.dtype(np.uint8 if bins <= 256 else np.uint16)
    per_transition: dict[str, tuple[tuple[int, ...], type | np.dtype]] = {
        "tokens": ((chunk, action_dims), tokens_type),
        "log_probs": ((chunk, action_dims), np.float32),
        "values": ((), np.float32),
        "temperature": ((), np.float32),
        "rewards": ((chunk,), np.float32),
        "executed": ((), np.int32),
        "success": ((chunk,), np.bool_),
        "version": ((), np.int64),
        "iteration": ((), np.int64),
        # Advantages that a group credit wrote when its group closed; zero where a batch credit makes them.
        "advantages": ((), np.float32),
    }
    if store_logits:
        per_transition["logits"] = ((chunk, action_dims, bins), np.float16)
    per_segment: dict[str, type] = {
        "length": np.int32,
        "terminated": np.bool_,
        "truncated": np.bool_,
        "bootstrap_value": np.float32,
        "task": np.int32,
        "env": np.int64,
        "episode": np.int64,
        # Index of the first transition within its episode.
        "start": np.int32,
        # Group of episodes with one initial state; -1 outside groups.
        "group": np.int64,
    }
    fields = {
        OBSERVATION_PREFIX + name: Field((length + 1, *array.shape), np.dtype(array.dtype))
        for name, array in spec.observation.items()
    }
    fields |= {
        name: Field((length, *shape), np.dtype(dtype)) for name, (shape, dtype) in per_transition.items()
    }
    fields |= {name: Field((), np.dtype(dtype)) for name, dtype in per_segment.items()}
    return SegmentLayout(length, chunk, action_dims, fields)


def oldest_version(segment: Arrays) -> int:
    """The version that acted in the oldest transition; a segment's lag is that of this one."""
    return int(segment["version"][: int(segment["length"])].min())


def iterate(batch: Arrays) -> Iterator[Arrays]:
    """The segments of a batch, as views."""
    for index in range(len(batch["length"])):
        yield {name: array[index] for name, array in batch.items()}
