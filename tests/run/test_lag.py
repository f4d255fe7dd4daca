"""The expected lag, against a ring that is fed and drawn from as a run does it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from gipo_vla.replay import samplers
from gipo_vla.replay.ring import SegmentRing
from gipo_vla.replay.segment import Segment, SegmentLayout
from gipo_vla.run.lag import Flow, expected_lag
from gipo_vla.run.memory import plan_replay

FLOW = Flow(decisions=12, segment_length=4, steps=6, envs=8, held=192, updates=6, batch_segments=4)
"""Episodes of three segments, half of them collected in an iteration; a replay of four iterations."""


def simulated(flow: Flow, layout: SegmentLayout, iterations: int = 80) -> dict[str, float]:
    """Mean and greatest lag of what is drawn once the ring is full, by its definition: every environment
    acts, its segments enter the ring at the end of the iteration in which they close, updates draw there."""
    sampler = samplers.uniform if flow.half_life is None else samplers.recency(flow.half_life)
    ring = SegmentRing(layout, int(flow.held), 10**9, sampler, flow.max_lag)
    rng = np.random.default_rng(0)
    clock = [flow.decisions * env // flow.envs for env in range(flow.envs)]
    opened: list[list[tuple[int, int]]] = [[] for _ in range(flow.envs)]
    waiting: list[list[list[tuple[int, int]]]] = [[] for _ in range(flow.envs)]
    full = expected_lag(flow).settled_after
    in_iterations: list[float] = []
    in_updates: list[float] = []
    for iteration in range(1, iterations + 1):
        closed: list[list[list[tuple[int, int]]]] = [[] for _ in range(flow.envs)]
        acted_at = [step * flow.updates // flow.steps for step in range(flow.steps)]
        for update in range(flow.updates):
            version = (iteration - 1) * flow.updates + update
            if len(ring.drawable(version)) >= flow.batch_segments:
                drawn = ring.sample(flow.batch_segments, rng, version)
                valid = np.arange(layout.length) < drawn.length[:, None]
                if iteration > full:
                    in_iterations.append(float((iteration - drawn.iteration[valid]).mean()))
                    in_updates += (version - drawn.version[valid]).tolist()
            for _ in range(acted_at.count(update)):
                for env in range(flow.envs):
                    opened[env].append((iteration, version // flow.sync_every * flow.sync_every))
                    clock[env] += 1
                    ends = clock[env] % flow.decisions == 0
                    if ends or len(opened[env]) == flow.segment_length:
                        waiting[env].append(opened[env])
                        opened[env] = []
                    if ends or not flow.whole_episodes:
                        closed[env] += waiting[env]
                        waiting[env] = []
        for own in closed:  # in the order of the environments, as the actor hands them over
            for segment in own:
                ring.add(_segment(layout, segment))
    return {
        "mean_iterations": float(np.mean(in_iterations)),
        "mean_updates": float(np.mean(in_updates)),
        "greatest_updates": max(in_updates),
    }


def _segment(layout: SegmentLayout, acted: list[tuple[int, int]]) -> Segment:
    batch = layout.allocate(1)
    batch.length[0] = len(acted)
    batch.iteration[0, : len(acted)], batch.version[0, : len(acted)] = zip(*acted, strict=True)
    return batch.segment(0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"held": 96},
        {"held": 48},
        {"held": 120},
        {"held": 480},
        {"decisions": 10},
        {"decisions": 10, "steps": 3, "held": 96},
        {"decisions": 5, "steps": 2, "held": 64},
        {"steps": 24, "held": 768},
        {"whole_episodes": True},
        {"sync_every": 4},
        {"updates": 5, "sync_every": 3},
        {"steps": 2, "updates": 6, "held": 64},
        {"max_lag": 12},
        {"max_lag": 8, "held": 480},
        {"half_life": 0.25},
        {"half_life": 0.1, "held": 480},
        {"half_life": 0.25, "max_lag": 15},
    ],
    ids=str,
)
def test_lag_is_that_of_a_simulated_run(small_layout: SegmentLayout, changes: dict[str, float]) -> None:
    flow = replace(FLOW, **changes)  # type: ignore[arg-type]
    lag, found = expected_lag(flow), simulated(flow, small_layout)
    assert lag.mean_iterations == pytest.approx(found["mean_iterations"], rel=0.05)
    assert lag.mean_updates == pytest.approx(found["mean_updates"], rel=0.05)
    # Where few environments close unequal numbers of segments, an iteration's may stay one longer.
    assert abs(lag.greatest_updates - found["greatest_updates"]) <= flow.updates
    if flow.max_lag is not None:
        assert lag.greatest_updates <= flow.max_lag


def test_a_transition_waits_for_its_segment() -> None:
    """Ages 1 and 2 and, of 6 vector steps an iteration, on average (4 - 1) / 2 for the rest of a segment."""
    lag = expected_lag(replace(FLOW, held=96))
    assert lag.mean_iterations == pytest.approx(1.5 + 1.5 / 6)
    assert lag.iterations_held == 2 and lag.samples_per_transition == pytest.approx(6 * 16 / 48)
    alone = expected_lag(replace(FLOW, held=96, segment_length=1, batch_segments=16))
    assert alone.mean_iterations == pytest.approx(1.5)


def test_the_tail_of_an_episode_waits_less() -> None:
    """Episodes of 10 decisions make segments of 4, 4 and 2."""
    lag = expected_lag(replace(FLOW, held=96, decisions=10))
    assert lag.mean_iterations == pytest.approx(1.5 + (2 * 6 + 1) / 10 / 6)


def test_groups_wait_for_the_end_of_the_episode() -> None:
    lag = expected_lag(replace(FLOW, held=96, whole_episodes=True))
    assert lag.mean_iterations == pytest.approx(1.5 + (12 - 1) / 2 / 6)


def test_a_limit_that_allows_nothing_expects_nothing() -> None:
    assert math.isnan(expected_lag(replace(FLOW, steps=1, segment_length=12, max_lag=1)).mean_iterations)


# ------------------------------------------------------------------------------------------------- replay


def test_memory_of_full_and_cut_segments(small_layout: SegmentLayout) -> None:
    size = small_layout.bytes_per_segment
    # Episodes of 10 decisions make segments of 4, 4 and 2: capacity 100 holds 10 episodes, 30 segments.
    plan = plan_replay(small_layout, 100, 10**9, 10)
    assert (plan.per_segment, plan.expected, plan.most, plan.transitions) == (
        size,
        30 * size,
        100 * size,
        100,
    )
    limited = plan_replay(small_layout, 100, 7 * size + 1, 10)
    assert (limited.expected, limited.most) == (7 * size, 7 * size)
    assert limited.transitions == pytest.approx(70 / 3)  # younger data than the capacity would give
    assert plan_replay(small_layout, 100, 10**9, 10, collected=20).expected == 6 * size


def test_bytes_are_those_of_the_arrays(small_layout: SegmentLayout) -> None:
    arrays = small_layout.allocate(3)
    assert sum(array.nbytes for array in arrays.arrays().values()) == 3 * small_layout.bytes_per_segment
