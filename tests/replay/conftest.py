"""A small layout, and segments with recognisable contents."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gipo_envs import EnvironmentSettings, make_spec
from gipo_vla.replay.segment import Segment, SegmentBatch, SegmentLayout, layout

MakeSegment = Callable[..., Segment]


@pytest.fixture(scope="module")
def small_layout() -> SegmentLayout:
    """L = 4, K = 2, D = 2, with logits."""
    spec = make_spec(EnvironmentSettings("point_reach", "reach"))
    return layout(spec, length=4, chunk=2, action_dims=2, bins=8, store_logits=True)


@pytest.fixture(scope="module")
def make_segment(small_layout: SegmentLayout) -> MakeSegment:
    """``make_segment(number, length, version)``: every number in it is drawn from ``number``."""

    def make(number: int, length: int, version: int = 0) -> Segment:
        rng = np.random.default_rng(number)
        segment = {}
        for name, field in small_layout.fields.items():
            segment[name] = rng.integers(0, 2, field.shape).astype(field.dtype)
            if field.dtype.kind == "f":
                segment[name] = rng.normal(size=field.shape).astype(field.dtype)
        segment["length"] = np.asarray(length, np.int32)
        segment["version"][:] = 10**9  # padding: must not count as a version
        segment["version"][:length] = version
        segment["episode"] = np.asarray(number, np.int64)
        return SegmentBatch.from_arrays({name: array[None] for name, array in segment.items()}).segment(0)

    return make
