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
) -> StalenessPlan:
    """Expected and greatest lag under uniform sampling.

    Segments finished in iteration i are drawn from i + 1 on, so the youngest lag is one iteration; the
    oldest is ``capacity / transitions_per_iteration`` iterations older (or ``max_lag`` updates).
    """
    held = capacity / transitions_per_iteration
    oldest = 1 + held
    if max_lag is not None:
        oldest = min(oldest, max(1.0, max_lag / updates_per_iteration))
    mean = (1 + oldest) / 2
    return StalenessPlan(
        iterations_held=held,
        mean_lag_iterations=mean,
        max_lag_iterations=oldest,
        mean_lag_updates=mean * updates_per_iteration,
        max_lag_updates=oldest * updates_per_iteration,
        samples_per_transition=updates_per_iteration * batch_transitions / transitions_per_iteration,
    )


@dataclass(frozen=True)
class MemoryPlan:
    """Host memory of one rank's replay, in bytes."""

    per_segment: int
    expected: int
    """With full-length segments but the tail of every episode."""
    worst: int
    """What the slots could grow to: the memory limit, or every segment one transition long."""


def memory_plan(
    layout: SegmentLayout, capacity: int, memory_limit: int, decisions_per_episode: int
) -> MemoryPlan:
    per_episode = math.ceil(decisions_per_episode / layout.length)
    segments = math.ceil(capacity * per_episode / decisions_per_episode)
    size = layout.bytes_per_segment
    slots = max(1, min(capacity, memory_limit // size))
    return MemoryPlan(size, min(segments, slots) * size, slots * size)
