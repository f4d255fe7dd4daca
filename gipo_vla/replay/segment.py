"""Segments: L consecutive transitions of one episode and the observation that follows.

A *transition* is one decision: what was seen, the tokens chosen, their log-probs under the behaviour policy,
and what came of them. A segment is the unit of storage, of sampling and of batches, and what an actor hands
to a learner: a ``Segment`` on its own, or N of them in the arrays of a ``SegmentBatch``. A ``SegmentLayout``
says which shapes and types these arrays have in a run.

A shorter tail of an episode is padded; rows from ``length`` on are never read, and zero in what an actor
writes. The observation that follows the last transition is row ``length`` of the observations: one row more,
so every image is stored once.

Shape suffixes: N segments, L segment length, K chunk, D action dimensions, V bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gipo_envs import EnvironmentSpec

Arrays = dict[str, NDArray[Any]]
"""Arrays by the names that they have in files: those of the fields, and ``observation/NAME``."""

OBSERVATION_PREFIX = "observation/"

S = TypeVar("S", "Segment", "SegmentBatch")


@dataclass(frozen=True)
class Segment:
    """Up to L consecutive transitions of one episode, and what is known of all of them together.

    The object is frozen, its arrays are not: a group credit writes its advantages into them. Arrays of a
    segment out of a batch or a ring are views.
    """

    observations: Mapping[str, NDArray[Any]]
    """(L + 1, ...) by name: what was seen before each transition, and in row ``length`` after the last."""
    tokens: NDArray[Any]
    """uint8 or uint16 (L, K, D), the tokens chosen."""
    log_probs: NDArray[np.float32]
    """(L, K, D), of the tokens under the behaviour policy at ``temperature``."""
    values: NDArray[np.float32]
    """(L,), the behaviour policy's, in scaled return."""
    temperature: NDArray[np.float32]
    """(L,), that divided the logits."""
    rewards: NDArray[np.float32]
    """(L, K), one an action, not scaled; zero from ``executed`` on."""
    executed: NDArray[np.int32]
    """(L,), actions of the chunk that were executed, 1..K."""
    success: NDArray[np.bool_]
    """(L, K), whether the task counted as solved after each action."""
    version: NDArray[np.int64]
    """(L,), of the behaviour policy: the learner's updates when its weights were copied."""
    iteration: NDArray[np.int64]
    """(L,), in which the transition was collected, from 1."""
    advantages: NDArray[np.float32]
    """(L,), as a group credit wrote them when the group closed; zero where a batch credit makes them."""
    logits: NDArray[np.float16] | None
    """(L, K, D, V), the behaviour policy's; None unless its exact KL is wanted."""
    length: int
    """Valid transitions, 1..L."""
    terminated: bool
    """The last transition ended the task."""
    truncated: bool
    """The last transition met a step limit."""
    bootstrap_value: float
    """Value of the observation that follows, in scaled return, for credits that use stored values; else 0."""
    task: int
    """Index into the environment's tasks."""
    env: int
    """Global environment id."""
    episode: int
    """Number of the episode within its environment."""
    start: int
    """Index of the first transition within its episode."""
    group: int
    """The group of episodes from one initial state; -1 outside groups."""

    @property
    def oldest_version(self) -> int:
        """The version that acted in the oldest transition; a segment's lag is that of this one."""
        return int(self.version[: self.length].min())

    def copy(self, length: int, **changed: int) -> Segment:
        """A copy of the first ``length`` transitions and of what followed them; padding is zero.

        Args:
            changed: values of the copy's own, by name.
        """
        values = _by_name(self) | {"length": length} | changed
        for name, array in values.items():
            if isinstance(array, np.ndarray):
                rows = length + name.startswith(OBSERVATION_PREFIX)
                values[name] = np.zeros_like(array)
                values[name][:rows] = array[:rows]
        return _build(Segment, values)


@dataclass(frozen=True)
class SegmentBatch:
    """N segments: the fields of a ``Segment``, every one an array with a leading axis N."""

    observations: Mapping[str, NDArray[Any]]
    tokens: NDArray[Any]
    log_probs: NDArray[np.float32]
    values: NDArray[np.float32]
    temperature: NDArray[np.float32]
    rewards: NDArray[np.float32]
    executed: NDArray[np.int32]
    success: NDArray[np.bool_]
    version: NDArray[np.int64]
    iteration: NDArray[np.int64]
    advantages: NDArray[np.float32]
    logits: NDArray[np.float16] | None
    length: NDArray[np.int32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    bootstrap_value: NDArray[np.float32]
    task: NDArray[np.int32]
    env: NDArray[np.int64]
    episode: NDArray[np.int64]
    start: NDArray[np.int32]
    group: NDArray[np.int64]

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> SegmentBatch:
        """The batch of arrays by their names in files (no copies)."""
        return _build(cls, arrays)

    def arrays(self) -> Arrays:
        """The arrays by their names in files (no copies), without logits where there are none."""
        return _by_name(self)

    def __len__(self) -> int:
        """Segments, N."""
        return len(self.length)

    def __iter__(self) -> Iterator[Segment]:
        """The segments in order, as views."""
        return (self.segment(index) for index in range(len(self)))

    def segment(self, index: int) -> Segment:
        """One segment, as a view."""
        arrays = _by_name(self).items()
        return _build(Segment, {n: a[index] if a.ndim > 1 else a[index].item() for n, a in arrays})

    def rows(self, rows: slice | NDArray[np.integer[Any]]) -> SegmentBatch:
        """Some of the segments: views for a slice, copies for an array of indices."""
        return _build(SegmentBatch, {name: array[rows] for name, array in _by_name(self).items()})

    def put(self, index: int, segment: Segment) -> None:
        """Copy a segment into row ``index``."""
        for name, array in self.observations.items():
            array[index] = segment.observations[name]
        for name in _NAMES:
            array = getattr(self, name)
            if array is not None:
                array[index] = getattr(segment, name)


_NAMES = tuple(field.name for field in fields(Segment) if field.name != "observations")
"""Fields of a ``Segment``, and of a batch, beside the observations."""


def _by_name(segments: Segment | SegmentBatch) -> dict[str, Any]:
    """Field values by their names in files, without those that are None."""
    values = {OBSERVATION_PREFIX + name: array for name, array in segments.observations.items()}
    values |= {name: getattr(segments, name) for name in _NAMES}
    if segments.logits is None:
        del values["logits"]
    return values


def _build(kind: type[S], values: Mapping[str, Any]) -> S:
    """The inverse of ``_by_name``."""
    own: dict[str, Any] = {"observations": {}, "logits": None}
    for name, value in values.items():
        if name.startswith(OBSERVATION_PREFIX):
            own["observations"][name.removeprefix(OBSERVATION_PREFIX)] = value
        else:
            own[name] = value
    return kind(**own)


@dataclass(frozen=True)
class Field:
    """Shape (without the axis of segments) and dtype of one array."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class SegmentLayout:
    """Shapes and types of the arrays of a segment, by their names in files."""

    length: int
    """L."""
    chunk: int
    action_dims: int
    fields: dict[str, Field]

    @property
    def bytes_per_segment(self) -> int:
        return sum(int(np.prod(field.shape)) * field.dtype.itemsize for field in self.fields.values())

    def allocate(self, count: int) -> SegmentBatch:
        """Zeroed arrays for ``count`` segments. The pages cost memory only once written."""
        return SegmentBatch.from_arrays(
            {name: np.zeros((count, *field.shape), field.dtype) for name, field in self.fields.items()}
        )

    def stack(self, segments: Sequence[Segment]) -> SegmentBatch:
        """A batch that holds copies of these segments."""
        batch = self.allocate(len(segments))
        for index, segment in enumerate(segments):
            batch.put(index, segment)
        return batch

    @cached_property
    def observation_names(self) -> tuple[str, ...]:
        """Names of the arrays of an observation."""
        names = (name for name in self.fields if name.startswith(OBSERVATION_PREFIX))
        return tuple(name.removeprefix(OBSERVATION_PREFIX) for name in names)


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
        "start": np.int32,
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
