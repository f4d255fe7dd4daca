"""Named arrays in memory that a parent and its workers share.

The memory is an anonymous file whose descriptor the workers inherit. It has no name, so there is nothing to
unlink and nothing that a killed process could leave behind.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[tuple[int, ...], str]
"""Shape and dtype name."""

_ALIGNMENT = 64  # a cache line, so that two workers never write to the same one


class SharedArrays(dict[str, NDArray[Any]]):
    """Arrays by name over one shared memory file."""

    def __init__(self, shapes: dict[str, Shape], descriptor: int | None = None) -> None:
        self.shapes = shapes
        offsets, size = {}, 0
        for name, (shape, dtype) in shapes.items():
            offsets[name] = size
            size += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // _ALIGNMENT) * _ALIGNMENT
        size = max(size, 1)
        self.descriptor = _anonymous_file(size) if descriptor is None else descriptor
        self._memory = mmap.mmap(self.descriptor, size)
        for name, (shape, dtype) in shapes.items():
            self[name] = np.ndarray(shape, dtype, self._memory, offsets[name])

    def close(self) -> None:
        """Give the memory back; where somebody still holds an array, when that is gone."""
        self.clear()
        with suppress(BufferError):
            self._memory.close()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("gipo_vla_rollout")
    else:  # macOS
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
