"""The ring against a list that does the same in the plainest way."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gipo_envs.errors import UserError
from gipo_vla.replay import samplers
from gipo_vla.replay.ring import SegmentRing
from gipo_vla.replay.segment import Segment, SegmentLayout

PLENTY = 10**9


class NaiveReplay:
    """What the ring promises, as a list."""

    def __init__(self, capacity: int, slots: int, max_lag: int | None) -> None:
        self.capacity, self.slots, self.max_lag = capacity, slots, max_lag
        self.segments: list[Segment] = []

    def transitions(self) -> int:
        return sum(segment.length for segment in self.segments)

    def add(self, segment: Segment) -> None:
        self.segments.append(deepcopy(segment))
        while self.transitions() > self.capacity or len(self.segments) > self.slots:
            del self.segments[0]

    def drawable(self, version: int) -> list[int]:
        return [
            segment.episode
            for segment in self.segments
            if self.max_lag is None or version - min(segment.version[: segment.length]) <= self.max_lag
        ]


def assert_same(ring: SegmentRing, naive: NaiveReplay) -> None:
    assert len(ring) == len(naive.segments)
    assert ring.transitions == naive.transitions()
    for held, expected in zip(ring.contents(), naive.segments, strict=True):
        np.testing.assert_equal(asdict(held), asdict(expected))


operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 4), st.integers(0, 12)),
        st.tuples(st.just("sample"), st.integers(1, 5), st.integers(0, 20)),
        st.tuples(st.just("reload"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    capacity=st.integers(4, 30),
    slots=st.integers(1, 12),
    max_lag=st.one_of(st.none(), st.integers(0, 8)),
    recency=st.booleans(),
    steps=operations,
)
def test_the_ring_is_the_naive_list(
    small_layout: SegmentLayout,
    make_segment,  # type: ignore[no-untyped-def]
    tmp_path_factory: pytest.TempPathFactory,
    capacity: int,
    slots: int,
    max_lag: int | None,
    recency: bool,
    steps: list[tuple[str, int, int]],
) -> None:
    sampler = samplers.recency(0.25) if recency else samplers.uniform

    def new_ring() -> SegmentRing:
        return SegmentRing(small_layout, capacity, slots * small_layout.bytes_per_segment, sampler, max_lag)

    ring, naive, rng = new_ring(), NaiveReplay(capacity, slots, max_lag), np.random.default_rng(0)
    for number, (operation, first, second) in enumerate(steps):
        if operation == "add":
            segment = make_segment(number, first, second)
            ring.add(segment)
            naive.add(segment)
            segment.rewards[:] = np.nan  # the ring holds a copy
        elif operation == "reload":
            folder = tmp_path_factory.mktemp("replay")
            ring.save(folder)
            added, ring = ring.added, new_ring()
            ring.load(folder)
            assert ring.added == added
        else:
            allowed = naive.drawable(second)
            assert len(ring.drawable(second)) == len(allowed)
            if len(allowed) < first:
                with pytest.raises(ValueError, match="asked for"):
                    ring.sample(first, rng, second)
                continue
            drawn = ring.sample(first, rng, second)
            numbers = drawn.episode.tolist()
            assert len(set(numbers)) == first and set(numbers) <= set(allowed)
            held = {segment.episode: segment for segment in naive.segments}
            for own in drawn:
                np.testing.assert_equal(asdict(own), asdict(held[own.episode]))
            for array in drawn.arrays().values():
                array.fill(0)  # a batch is the caller's: this must change nothing held
        assert_same(ring, naive)


def fill(ring: SegmentRing, make_segment, count: int, length: int = 4) -> None:  # type: ignore[no-untyped-def]
    for number in range(count):
        ring.add(make_segment(number, length, number))


def test_the_oldest_transition_decides_the_lag(small_layout: SegmentLayout, make_segment) -> None:  # type: ignore[no-untyped-def]
    segment = make_segment(0, 3)
    segment.version[:3] = [7, 5, 6]
    assert segment.oldest_version == 5
    ring = SegmentRing(small_layout, 100, PLENTY, samplers.uniform, max_lag=2)
    ring.add(segment)
    assert len(ring.drawable(7)) == 1, "a lag of exactly max_lag may be drawn"
    assert len(ring.drawable(8)) == 0


def test_every_drawable_segment_is_drawn_and_no_other(small_layout: SegmentLayout, make_segment) -> None:  # type: ignore[no-untyped-def]
    ring = SegmentRing(small_layout, 100, PLENTY, samplers.uniform, max_lag=4)
    fill(ring, make_segment, 10)
    batch = ring.sample(5, np.random.default_rng(0), 9)
    assert sorted(batch.episode.tolist()) == [5, 6, 7, 8, 9]


def test_the_same_generator_draws_the_same_batch(small_layout: SegmentLayout, make_segment) -> None:  # type: ignore[no-untyped-def]
    for sampler in (samplers.uniform, samplers.recency(0.25)):
        ring = SegmentRing(small_layout, 100, PLENTY, sampler)
        fill(ring, make_segment, 20)
        first, second = (ring.sample(6, np.random.default_rng(3), 20).episode for _ in range(2))
        np.testing.assert_array_equal(first, second)


def test_no_room_for_one_segment_is_refused(small_layout: SegmentLayout) -> None:
    with pytest.raises(UserError, match=r"replay\.memory_limit_gb"):
        SegmentRing(small_layout, 100, small_layout.bytes_per_segment - 1, samplers.uniform)


def test_files_hold_no_pickle_and_no_more_than_is_held(
    small_layout: SegmentLayout,
    make_segment,  # type: ignore[no-untyped-def]
    tmp_path: Path,
) -> None:
    ring = SegmentRing(small_layout, 8, PLENTY, samplers.uniform)
    fill(ring, make_segment, 5)
    ring.save(tmp_path)
    assert json.loads((tmp_path / "replay.json").read_text()) == {
        "segments": 2,
        "transitions": 8,
        "added": 5,
    }
    arrays = {path.stem: np.load(path, allow_pickle=False) for path in tmp_path.glob("*.npy")}
    assert set(arrays) == {name.replace("/", ".") for name in small_layout.fields}
    assert {len(array) for array in arrays.values()} == {2}
    np.testing.assert_array_equal(arrays["episode"], [3, 4])


def test_loading_into_a_smaller_ring_keeps_the_newest(
    small_layout: SegmentLayout,
    make_segment,  # type: ignore[no-untyped-def]
    tmp_path: Path,
) -> None:
    ring = SegmentRing(small_layout, 40, PLENTY, samplers.uniform)
    fill(ring, make_segment, 10)
    ring.save(tmp_path)
    smaller = SegmentRing(small_layout, 12, PLENTY, samplers.uniform)
    fill(smaller, make_segment, 2)  # what it held before goes
    smaller.load(tmp_path)
    assert smaller.contents().episode.tolist() == [7, 8, 9]
    assert smaller.transitions == 12


def test_an_empty_ring_survives_the_disk(small_layout: SegmentLayout, tmp_path: Path) -> None:
    ring = SegmentRing(small_layout, 40, PLENTY, samplers.uniform)
    ring.save(tmp_path)
    ring.load(tmp_path)
    assert len(ring) == ring.transitions == 0


def test_another_layout_is_named(small_layout: SegmentLayout, make_segment, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ring = SegmentRing(small_layout, 40, PLENTY, samplers.uniform)
    fill(ring, make_segment, 1)
    ring.save(tmp_path)
    np.save(tmp_path / "rewards.npy", np.zeros((1, 5, 2), np.float32))
    with pytest.raises(UserError, match=r"rewards\.npy"):
        ring.load(tmp_path)
