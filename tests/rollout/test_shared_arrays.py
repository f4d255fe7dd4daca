"""Named arrays over one anonymous file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gipo_vla.rollout.shared_arrays import SharedArrays

SHAPES = {
    "flag": ((3,), "bool"),
    "number": ((), "int64"),
    "empty": ((0, 4), "float32"),
    "picture": ((2, 5, 7, 3), "uint8"),
    "last": ((5,), "float64"),
}


@pytest.fixture
def arrays() -> Iterator[SharedArrays]:
    shared = SharedArrays(SHAPES)
    yield shared
    shared.close()


def test_have_the_shapes_asked_for_and_start_at_zero(arrays: SharedArrays) -> None:
    assert list(arrays) == list(SHAPES) and len(arrays) == len(SHAPES)
    for name, (shape, dtype) in SHAPES.items():
        assert arrays[name].shape == shape and arrays[name].dtype == dtype
        assert not arrays[name].any()


def test_a_second_view_of_the_descriptor_sees_the_same_memory(arrays: SharedArrays) -> None:
    other = SharedArrays(SHAPES, os.dup(arrays.descriptor))
    rng = np.random.default_rng(0)
    for name, (shape, dtype) in SHAPES.items():
        arrays[name][...] = rng.integers(0, 2, shape).astype(dtype)
    for name in SHAPES:
        np.testing.assert_array_equal(other[name], arrays[name])
    other["number"][...] = 7
    assert arrays["number"] == 7
    other.close()


def test_no_array_overlaps_another(arrays: SharedArrays) -> None:
    for name in SHAPES:
        arrays[name][...] = 1
        assert all(not arrays[other].any() for other in SHAPES if other != name)
        arrays[name][...] = 0
        assert arrays[name].__array_interface__["data"][0] % 64 == 0


def test_close_may_be_called_twice_and_leaves_no_descriptor() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    shared = SharedArrays(SHAPES)
    shared.close()
    shared.close()
    del shared
    assert len(list(Path("/proc/self/fd").iterdir())) == before
