"""What is promised of staleness and memory, against a ring that is run."""

from __future__ import annotations

import numpy as np
import pytest

from gipo_vla.replay import samplers
from gipo_vla.replay.plan import memory_plan, staleness_plan
from gipo_vla.replay.ring import SegmentRing
from gipo_vla.replay.segment import SegmentLayout


def simulated_lags(
    small_layout: SegmentLayout,
    make_segment,  # type: ignore[no-untyped-def]
    capacity: int,
    segments_an_iteration: int,
    updates: int,
    batch: int,
    max_lag: int | None = None,
    iterations: int = 60,
) -> tuple[np.ndarray, float]:
    """Lags in updates of everything drawn once the ring is full, and the draws a transition."""
    ring = SegmentRing(small_layout, capacity, 10**9, samplers.uniform, max_lag)
    rng = np.random.default_rng(0)
    lags, version, drawn = [], 0, 0
    for iteration in range(iterations):
        # What is acted while update u is under way has the version of that moment.
        acted = [version + updates * k // segments_an_iteration for k in range(segments_an_iteration)]
        for _ in range(updates):
            if len(ring.drawable(version)) >= batch:
                chosen = ring.sample(batch, rng, version)
                if iteration > iterations // 2:
                    lags += (version - chosen.version[:, 0]).tolist()
                    drawn += batch
            version += 1
        for number, v in enumerate(acted):
            ring.add(make_segment(number, 4, v))
    new = segments_an_iteration * (iterations - iterations // 2 - 1)
    return np.array(lags), drawn / new


@pytest.mark.parametrize("held", [0.75, 1, 2, 2.5, 5])
def test_staleness_of_a_full_ring(small_layout: SegmentLayout, make_segment, held: float) -> None:  # type: ignore[no-untyped-def]
    segments, updates, batch = 8, 6, 4
    capacity = int(held * segments * 4)
    plan = staleness_plan(capacity, segments * 4, updates, batch * 4)
    lags, draws = simulated_lags(small_layout, make_segment, capacity, segments, updates, batch)
    assert plan.iterations_held == held
    assert plan.samples_per_transition == pytest.approx(draws)
    # Drawing before the first micro-batch of an update and acting after it leaves a part of an update.
    assert plan.mean_lag_updates == pytest.approx(lags.mean(), abs=0.8)
    assert lags.max() <= plan.max_lag_updates <= lags.max() + updates // 2
    assert plan.mean_lag_iterations * updates == plan.mean_lag_updates


def test_a_segment_of_two_iterations_waits_one_on_average() -> None:
    plain = staleness_plan(100, 20, 4, 10)
    waiting = staleness_plan(100, 20, 4, 10, segment_iterations=2.0)
    assert waiting.mean_lag_iterations == plain.mean_lag_iterations + 1
    assert waiting.max_lag_iterations == plain.max_lag_iterations + 2


def test_staleness_under_a_lag_limit(small_layout: SegmentLayout, make_segment) -> None:  # type: ignore[no-untyped-def]
    segments, updates, batch = 8, 4, 2
    capacity = 10 * segments * 4
    plan = staleness_plan(capacity, segments * 4, updates, batch * 4, max_lag=12)
    lags, _ = simulated_lags(small_layout, make_segment, capacity, segments, updates, batch, max_lag=12)
    assert lags.max() <= 12 == plan.max_lag_updates
    assert plan.mean_lag_updates == pytest.approx(lags.mean(), rel=0.15)


def test_memory_of_full_and_cut_segments(small_layout: SegmentLayout) -> None:
    size = small_layout.bytes_per_segment
    # Episodes of 10 decisions make segments of 4, 4 and 2: capacity 100 holds 10 episodes, 30 segments.
    plan = memory_plan(small_layout, 100, 10**9, 10)
    assert (plan.per_segment, plan.expected, plan.worst) == (size, 30 * size, 100 * size)
    limited = memory_plan(small_layout, 100, 7 * size + 1, 10)
    assert (limited.expected, limited.worst) == (7 * size, 7 * size)


def test_bytes_are_those_of_the_arrays(small_layout: SegmentLayout) -> None:
    arrays = small_layout.allocate(3)
    assert sum(array.nbytes for array in arrays.arrays().values()) == 3 * small_layout.bytes_per_segment
