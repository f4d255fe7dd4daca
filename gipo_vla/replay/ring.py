"""The ring of segments: preallocated arrays, oldest out first.

Three limits: the *capacity* in valid transitions is what an experimenter sets (it fixes the staleness of
the data); the *memory limit* bounds the slots; ``max_lag`` keeps segments that are too old from being drawn
without removing them (a run whose learner pauses would otherwise lose its data).

Freed slots are reused last-in first-out, so memory is touched only for as many segments as were ever held
at once, although there are slots for the worst case (every segment one transition long).
"""

from __future__ import annotations

import json
import operator
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gipo_envs.errors import UserError
from gipo_vla import foreign
from gipo_vla.replay.samplers import Sampler
from gipo_vla.replay.segment import Segment, SegmentBatch, SegmentLayout

ROWS_AT_A_TIME = 16
"""Segments copied at once on their way to disk (a VLA's have megabytes each)."""


class SegmentRing:
    """A first-in first-out store of segments with sampling.

    Args:
        layout: the arrays of a segment.
        capacity: valid transitions held.
        memory_limit: bytes of segment slots.
        sampler: how the segments that may be drawn are weighted.
        max_lag: segments whose oldest transition lags more updates are not drawn.
    """

    def __init__(
        self,
        layout: SegmentLayout,
        capacity: int,
        memory_limit: int,
        sampler: Sampler,
        max_lag: int | None = None,
    ) -> None:
        slots = min(capacity, memory_limit // layout.bytes_per_segment)
        if slots < 1:
            raise UserError(
                f"replay.memory_limit_gb is {memory_limit / 1e9:.3g}: one segment alone takes "
                f"{layout.bytes_per_segment / 1e9:.3g} GB; raise the limit or lower replay.segment_length"
            )
        self.layout, self.capacity, self.max_lag, self.sampler = layout, capacity, max_lag, sampler
        self.slots = slots
        self._held = layout.allocate(slots)
        self._versions = np.zeros(slots, np.int64)
        self._order: deque[int] = deque()
        """Slots in use, oldest first."""
        self._free = list(range(slots - 1, -1, -1))
        self.transitions = 0
        """Valid transitions held."""
        self.added = 0
        """Segments ever added."""

    def __len__(self) -> int:
        """Segments held."""
        return len(self._order)

    def add(self, segment: Segment) -> None:
        """Store a copy; over the limits the oldest segments leave."""
        assert 1 <= segment.length <= self.layout.length
        while self._order and (self.transitions + segment.length > self.capacity or not self._free):
            self._remove_oldest()
        slot = self._free.pop()
        self._held.put(slot, segment)
        self._versions[slot] = segment.oldest_version
        self._order.append(slot)
        self.transitions += segment.length
        self.added += 1

    def _remove_oldest(self) -> None:
        slot = self._order.popleft()
        self.transitions -= int(self._held.length[slot])
        self._free.append(slot)

    def drawable(self, learner_version: int) -> NDArray[np.int64]:
        """Slots that may be drawn at this version, oldest first."""
        slots = np.fromiter(self._order, np.int64, len(self._order))
        if self.max_lag is None:
            return slots
        return slots[learner_version - self._versions[slots] <= self.max_lag]

    def sample(self, count: int, rng: np.random.Generator, learner_version: int) -> SegmentBatch:
        """Draw ``count`` different segments (copies).

        Raises:
            ValueError: fewer may be drawn; ask ``drawable`` first.
        """
        slots = self.drawable(learner_version)
        if len(slots) < count:
            raise ValueError(f"{count} segments asked for, {len(slots)} may be drawn")
        return self._held.rows(slots[self.sampler(len(slots), count, rng)])

    def newest(self, task: int, transitions: int) -> list[Segment]:
        """The newest segments of a task with at most so many valid transitions together, newest first; views,
        to be read before the next ``add``."""
        slots = np.fromiter(reversed(self._order), np.int64, len(self._order))
        slots = slots[self._held.task[slots] == task]
        total = np.cumsum(self._held.length[slots])
        return [self._held.segment(slot) for slot in slots[total <= transitions].tolist()]

    def contents(self) -> SegmentBatch:
        """All segments, oldest first (copies)."""
        return self._held.rows(np.fromiter(self._order, np.int64, len(self._order)))

    # ------------------------------------------------------------------------------------------ to disk

    def save(self, folder: Path) -> None:
        """Write the segments held, oldest first: one npy file a field, and replay.json."""
        self.held(copy=False).save(folder)

    def held(self, copy: bool) -> HeldSegments:
        """The segments held, to be written: a copy for later, or views for now, before the ring changes."""
        slots = np.fromiter(self._order, np.int64, len(self._order))
        segments = self._held
        if copy:
            segments, slots = self.contents(), np.arange(len(slots))
        return HeldSegments(segments, slots, self.transitions, self.added)

    def load(self, folder: Path, check: Callable[[Path, SegmentBatch], None] | None = None) -> None:
        """Replace the contents by what ``save`` wrote; the limits stay this ring's own.

        Args:
            check: is asked about the segments before any of them is taken.

        Raises:
            UserError: see ``read``.
        """
        self._order.clear()
        self._free = list(range(self.slots - 1, -1, -1))
        self.transitions = 0
        segments = read(folder, self.layout)
        if check is not None:
            check(folder, segments)
        for segment in segments:
            self.add(segment)
        with foreign.understood(folder / "replay.json"):
            self.added = operator.index(foreign.read_json(folder / "replay.json")["added"])


@dataclass(frozen=True)
class HeldSegments:
    """What a ring held at one moment."""

    segments: SegmentBatch
    slots: NDArray[np.int64]
    """Rows of ``segments``, oldest first."""
    transitions: int
    added: int

    @property
    def bytes(self) -> int:
        return len(self.slots) * sum(array[:1].nbytes for array in self.segments.arrays().values())

    def save(self, folder: Path) -> None:
        """See ``SegmentRing.save``. Takes no further memory: rows are written a few at a time."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in self.segments.arrays().items():
            with (folder / f"{name.replace('/', '.')}.npy").open("wb") as file:
                header = np.lib.format.header_data_from_array_1_0(array[:0])
                header["shape"] = (len(self.slots), *array.shape[1:])
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(self.slots), ROWS_AT_A_TIME):
                    file.write(array[self.slots[start : start + ROWS_AT_A_TIME]].tobytes())
        summary = {"segments": len(self.slots), "transitions": self.transitions, "added": self.added}
        (folder / "replay.json").write_text(json.dumps(summary))


def read(folder: Path, layout: SegmentLayout) -> SegmentBatch:
    """The segments that a ring's ``save`` wrote, oldest first; read-only, read from disk as they are used.

    Raises:
        UserError: the files are of another layout (another policy, chunk or segment length).
    """
    stored = {}
    for name, field in layout.fields.items():
        path = folder / f"{name.replace('/', '.')}.npy"
        stored[name] = foreign.read_npy(path)
        if stored[name].shape[1:] != field.shape or stored[name].dtype != field.dtype:
            raise UserError(
                f"{path} holds {stored[name].dtype} {stored[name].shape[1:]} a segment, this run "
                f"{field.dtype} {field.shape}: it was written with another policy or segment length"
            )
    return SegmentBatch.from_arrays(stored)
