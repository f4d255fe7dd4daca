"""Segments on their own, in batches, and as the arrays of files."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from gipo_vla.replay.segment import SegmentBatch, SegmentLayout


def test_a_batch_is_its_segments(small_layout: SegmentLayout, make_segment) -> None:  # type: ignore[no-untyped-def]
    segments = [make_segment(number, 1 + number % 4, number) for number in range(5)]
    batch = small_layout.stack(segments)
    assert len(batch) == 5 and batch.length.tolist() == [1, 2, 3, 4, 1]
    for own, expected in zip(batch, segments, strict=True):
        np.testing.assert_equal(asdict(own), asdict(expected))
    chosen = batch.rows(np.array([3, 1]))
    assert chosen.episode.tolist() == [3, 1] == [segment.episode for segment in chosen]
    assert [segment.episode for segment in batch.rows(slice(1, 3))] == [1, 2]


def test_arrays_have_the_names_and_types_of_the_layout(small_layout: SegmentLayout, make_segment) -> None:  # type: ignore[no-untyped-def]
    batch = small_layout.stack([make_segment(0, 3), make_segment(1, 4)])
    arrays = batch.arrays()
    assert list(arrays) == list(small_layout.fields), "in one order, which is that of the files"
    for name, field in small_layout.fields.items():
        assert (arrays[name].shape, arrays[name].dtype) == ((2, *field.shape), field.dtype), name
    again = SegmentBatch.from_arrays(arrays)
    np.testing.assert_equal(asdict(again), asdict(batch))
    assert again.tokens is batch.tokens, "no copies"
    without = replace(batch, logits=None)
    assert "logits" not in without.arrays() and without.segment(0).logits is None


def test_a_segment_of_a_batch_is_a_view_and_a_copy_is_not(small_layout: SegmentLayout, make_segment) -> None:  # type: ignore[no-untyped-def]
    batch = small_layout.stack([make_segment(0, 4), make_segment(1, 4)])
    batch.segment(1).advantages[:] = 7
    assert (batch.advantages[1] == 7).all() and not (batch.advantages[0] == 7).any()
    copy = batch.segment(1).copy(2)
    assert copy.length == 2 and copy.advantages.tolist() == [7, 7, 0, 0]
    np.testing.assert_array_equal(copy.observations["state"][:3], batch.observations["state"][1, :3])
    assert not copy.observations["state"][3:].any(), "the observation that follows stays, padding goes"
    copy.advantages[:] = 1
    assert (batch.advantages[1] == 7).all()


@pytest.mark.parametrize("count", [0, 3])
def test_stacked_segments_are_as_many(small_layout: SegmentLayout, make_segment, count: int) -> None:  # type: ignore[no-untyped-def]
    batch = small_layout.stack([make_segment(number, 1) for number in range(count)])
    assert len(batch) == count == len(list(batch))
