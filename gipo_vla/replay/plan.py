"""What a replay will cost and how old its data will be, before anything is spent.

With a fixed number of new transitions an iteration, a first-in first-out ring of a given capacity holds the
last ``capacity / new`` iterations, so the age of what is drawn follows from the settings alone. This is what
makes staleness a setting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gipo_vla.replay.segment import SegmentLayout


@dataclass(frozen=True)
class StalenessPlan:
    """Lag that a run will have once its replay is full (a lag under way is smaller)."""

    iterations_held: float
    mean_lag_iterations: float
    max_lag_iterations: float
    mean_lag_updates: float
    max_lag_updates: float
    samples_per_transition: float
    """How often a transition is trained on during its life."""


def staleness_plan(
    capacity: int,
    transitions_per_iteration: float,
    updates_per_iteration: int,
    batch_transitions: int,
    max_lag: int | None = None,
    segment_iterations: float = 0.0,
) -> StalenessPlan:
    """Expected and greatest lag under uniform sampling.

    Segments finished in iteration i are drawn from i + 1 on, and leave when ``held`` iterations' worth of
    newer ones are there: their ages are 1, 2 ... up to ``held``, a last part of an iteration counting as
    such. In updates a lag is the age times the updates an iteration, on average, since acting and drawing
    are both spread over their iterations; at most it is one iteration more.

    Args:
        max_lag: updates; nothing older is drawn.
        segment_iterations: iterations that it takes to collect one segment; on average a transition waits
            half of that until its segment is complete.
    """
    held = max(capacity / transitions_per_iteration, 1.0)  # less than one holds the newest part of one
    whole, part = int(held), held - int(held)
    waiting = segment_iterations / 2
    mean = (whole * (whole + 1) / 2 + part * (whole + 1)) / held + waiting
    oldest = math.ceil(held) + math.ceil(segment_iterations)
    mean_updates = mean * updates_per_iteration
    oldest_updates = (oldest + 1) * updates_per_iteration - 1
    if max_lag is not None and max_lag < oldest_updates:
        # Lags are then spread from about half an iteration to the limit.
        mean_updates = min(mean_updates, (updates_per_iteration / 2 + max_lag) / 2)
        oldest_updates = max_lag
    return StalenessPlan(
        iterations_held=capacity / transitions_per_iteration,
        mean_lag_iterations=mean_updates / updates_per_iteration,
        max_lag_iterations=min(oldest, math.ceil(oldest_updates / updates_per_iteration)),
        mean_lag_updates=mean_updates,
        max_lag_updates=oldest_updates,
        samples_per_transition=updates_per_iteration * batch_transitions / transitions_per_iteration,
    )


@dataclass(frozen=True)
class MemoryPlan:
    """Host memory of one rank's replay, in bytes."""

    per_segment: int
    expected: int
    """Bytes where all segments are full but the last one of every episode."""
    worst: int
    """Bytes that the slots could grow to: the memory limit, or every segment one transition long."""


def memory_plan(
    layout: SegmentLayout, capacity: int, memory_limit: int, decisions_per_episode: int
) -> MemoryPlan:
    per_episode = math.ceil(decisions_per_episode / layout.length)
    segments = math.ceil(capacity * per_episode / decisions_per_episode)
    size = layout.bytes_per_segment
    slots = max(1, min(capacity, memory_limit // size))
    return MemoryPlan(size, min(segments, slots) * size, slots * size)
