"""The ring of segments: preallocated arrays, oldest out first.

Three limits: the *capacity* in valid transitions is what an experimenter sets (it fixes the staleness of
the data); the *memory limit* bounds the slots; ``max_lag`` keeps segments that are too old from being drawn
without removing them (a run whose learner pauses would otherwise lose its data).

Freed slots are reused last-in first-out, so memory is touched only for as many segments as were ever held
at once, although there are slots for the worst case (every segment one transition long).
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gipo_envs.errors import UserError
from gipo_vla.replay.samplers import Sampler
from gipo_vla.replay.segment import Arrays, SegmentLayout, iterate, oldest_version


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
        self._arrays = layout.allocate(slots)
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

    def add(self, segment: Arrays) -> None:
        """Store a copy; over the limits the oldest segments leave."""
        length = int(segment["length"])
        assert 1 <= length <= self.layout.length
        while self._order and (self.transitions + length > self.capacity or not self._free):
            self._remove_oldest()
        slot = self._free.pop()
        for name, array in self._arrays.items():
            array[slot] = segment[name]
        self._versions[slot] = oldest_version(segment)
        self._order.append(slot)
        self.transitions += length
        self.added += 1

    def _remove_oldest(self) -> None:
        slot = self._order.popleft()
        self.transitions -= int(self._arrays["length"][slot])
        self._free.append(slot)

    def drawable(self, learner_version: int) -> NDArray[np.int64]:
        """Slots that may be drawn at this version, oldest first."""
        slots = np.fromiter(self._order, np.int64, len(self._order))
        if self.max_lag is None:
            return slots
        return slots[learner_version - self._versions[slots] <= self.max_lag]

    def sample(self, count: int, rng: np.random.Generator, learner_version: int) -> Arrays:
        """Draw ``count`` different segments (arrays with a leading axis, copies).

        Raises:
            ValueError: fewer may be drawn; ask ``drawable`` first.
        """
        slots = self.drawable(learner_version)
        if len(slots) < count:
            raise ValueError(f"{count} segments asked for, {len(slots)} may be drawn")
        chosen = slots[self.sampler(len(slots), count, rng)]
        return {name: array[chosen] for name, array in self._arrays.items()}

    def contents(self) -> Arrays:
        """All segments, oldest first (copies)."""
        slots = np.fromiter(self._order, np.int64, len(self._order))
        return {name: array[slots] for name, array in self._arrays.items()}

    # ------------------------------------------------------------------------------------------ to disk

    def save(self, folder: Path) -> None:
        """Write the segments held, oldest first: one npy file a field, and replay.json."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in self.contents().items():
            np.save(folder / f"{name.replace('/', '.')}.npy", array, allow_pickle=False)
        summary = {"segments": len(self), "transitions": self.transitions, "added": self.added}
        (folder / "replay.json").write_text(json.dumps(summary))

    def load(self, folder: Path) -> None:
        """Replace the contents by what ``save`` wrote; the limits stay this ring's own.

        Raises:
            UserError: see ``read``.
        """
        self._order.clear()
        self._free = list(range(self.slots - 1, -1, -1))
        self.transitions = 0
        for segment in iterate(read(folder, self.layout)):
            self.add(segment)
        self.added = json.loads((folder / "replay.json").read_text())["added"]


def read(folder: Path, layout: SegmentLayout) -> Arrays:
    """The segments that a ring's ``save`` wrote, oldest first.

    Raises:
        UserError: the files are of another layout (another policy, chunk or segment length).
    """
    stored: Arrays = {}
    for name, field in layout.fields.items():
        path = folder / f"{name.replace('/', '.')}.npy"
        stored[name] = np.load(path, allow_pickle=False)
        if stored[name].shape[1:] != field.shape or stored[name].dtype != field.dtype:
            raise UserError(
                f"{path} holds {stored[name].dtype} {stored[name].shape[1:]} a segment, this run "
                f"{field.dtype} {field.shape}: it was written with another policy or segment length"
            )
    return stored
