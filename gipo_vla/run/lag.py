"""The expected lag of a run's data: the one formula, from the sizes of a run alone.

Of four parts:

1. *The age of a segment in the replay.* What is collected in one iteration can be drawn from the next one on.
   A first-in first-out ring that holds h iterations' worth of transitions therefore holds ages 1, 2 ... up to
   h, a last part of an iteration counting as such.
2. *The wait for a segment.* A transition can be drawn once its segment is complete. The transition at
   position j of a segment of l transitions waits l - 1 - j vector steps; at S vector steps an iteration that
   is (l - 1 - j) / S iterations, on average over the moments at which segments begin. An episode of T
   decisions has T // L segments of L and a tail. Credits that work on groups release whole episodes, so there
   a transition waits for the end of its episode.
3. *The updates within an iteration.* The lag in updates is the version that trains minus the version that
   acted. Update u of an iteration has u updates before it; vector step s is dispatched in update
   s * U // S; and the behaviour policy has the weights of the last multiple of ``rollout.sync_every``.
4. *What may be drawn, and how often.* With ``replay.max_lag`` a segment counts only in the updates at which
   the version of its oldest transition is young enough. With ``replay.sampler=recency`` younger segments
   count more.

Episodes are taken to last to their step limit. Where they end earlier (at a success), segments are cut at
other places: their wait differs by less than half of L / S iterations, their age not at all. Only in groups
of episodes of different lengths is the lag greater: the environments that are ahead wait for the last one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy  # its parts load when first used
from numpy.typing import NDArray

PARTS = 16
"""Of an iteration's transitions, for the weights of ``recency`` sampling."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lag:
    """The lag that drawn transitions have once the replay is full; before that it is smaller."""

    iterations_held: float
    """What the replay holds of one rank's collection."""
    mean_iterations: float
    greatest_iterations: int
    mean_updates: float
    greatest_updates: int
    samples_per_transition: float
    """How often a transition is trained on during its life, with full segments."""
    settled_after: int
    """Iterations after which the replay is full, so that the mean lag is the expected one."""


@dataclass(frozen=True)
class Flow:
    """How transitions come into the replay of one rank and are drawn from it."""

    decisions: int
    """Transitions of an episode that lasts to its step limit, T."""
    segment_length: int
    """L."""
    steps: int
    """Vector steps an iteration, S."""
    envs: int
    """Environments of the rank; an iteration collects S times as many transitions."""
    held: float
    """Transitions that the rank's replay holds when it is full."""
    updates: int
    """An iteration, U."""
    batch_segments: int
    """Segments that the rank draws for an update."""
    sync_every: int = 1
    max_lag: int | None = None
    """Updates."""
    half_life: float | None = None
    """Share of the segments held after which the weight halves; None: all are drawn alike."""
    whole_episodes: bool = False
    """Segments are released when their episode (and its group) ends."""


def expected_lag(flow: Flow) -> Lag:
    """The lag under the flow of a run; see the module for the formula."""
    new = flow.steps * flow.envs
    held = max(flow.held / new, 1.0)  # a replay of less than one iteration keeps the newest part of one
    segments = _Segments(flow)
    ages = math.ceil(held)
    share = np.minimum(1.0, held - np.arange(ages))
    """Of the iteration that was collected a = 1, 2 ... iterations ago, what is still held."""
    mean_iterations, mean_updates, greatest_iterations, greatest_updates = [], [], 0, 0
    for update in range(flow.updates):
        # Ages up to which the oldest transition of each segment may be drawn in this update.
        oldest = np.full(segments.length.shape, ages)
        if flow.max_lag is not None:
            allowed = (flow.max_lag - update + segments.oldest_version) // flow.updates
            oldest = np.clip(allowed, 0, ages).astype(int)
        counted, aged = _drawn(flow, share, oldest, segments)
        weight = segments.length * counted
        total = weight.sum()
        if not total:
            continue  # nothing may be drawn: the run collects more, or stops and names replay.max_lag
        mean_iterations.append((segments.length * aged + weight * segments.wait).sum() / total)
        lags = flow.updates * segments.length * aged + weight * (update - segments.mean_version)
        mean_updates.append(lags.sum() / total)
        seen = oldest > 0
        greatest_iterations = max(greatest_iterations, int((oldest + segments.longest_wait)[seen].max()))
        in_updates = flow.updates * oldest + update - segments.oldest_version
        greatest_updates = max(greatest_updates, int(in_updates[seen].max()))
    return Lag(
        iterations_held=flow.held / new,
        mean_iterations=float(np.mean(mean_iterations)) if mean_iterations else math.nan,
        greatest_iterations=greatest_iterations,
        mean_updates=float(np.mean(mean_updates)) if mean_updates else math.nan,
        greatest_updates=greatest_updates,
        samples_per_transition=flow.updates * flow.batch_segments * flow.segment_length / new,
        settled_after=ages + int(segments.longest_wait.max()) + 1,
    )


class _Segments:
    """The segments of an episode (rows), for every vector step of an iteration in which one may be released
    (columns). Versions count from the first update of the iteration of the release."""

    def __init__(self, flow: Flow) -> None:
        length, steps, updates = flow.segment_length, flow.steps, flow.updates
        first = np.arange(0, flow.decisions, length)
        lengths = np.minimum(length, flow.decisions - first)
        # Full segments of an episode are alike, unless they wait for its end.
        if flow.whole_episodes:
            released, count = np.full_like(first, flow.decisions - 1), np.ones_like(first)
        else:
            released = first + lengths - 1
            _, chosen, numbers = np.unique(lengths, return_index=True, return_counts=True)
            first, lengths, released, count = first[chosen], lengths[chosen], released[chosen], numbers
        phase = np.arange(steps)
        shape = (len(first), steps)
        self.wait, self.mean_version = np.empty(shape), np.empty(shape)
        self.longest_wait, self.oldest_version = np.empty(shape, int), np.empty(shape)
        for row, (begin, own, end) in enumerate(zip(first.tolist(), lengths.tolist(), released.tolist())):
            # The vector step of every transition, from the start of the iteration of the release.
            acted = phase[:, None] - (end - begin) + np.arange(own)
            iteration, step = np.divmod(acted, steps)
            self.wait[row] = -iteration.mean(1)
            self.longest_wait[row] = -iteration[:, 0]
            versions = _synchronized(iteration * updates + step * updates // steps, updates, flow.sync_every)
            self.mean_version[row], self.oldest_version[row] = versions.mean(1), versions[:, 0]
        self.length: Floats = np.broadcast_to((lengths * count)[:, None], shape).astype(float)
        """Transitions, of all segments of this kind in an episode."""


def _synchronized(version: NDArray[np.int64], updates: int, every: int) -> Floats:
    """The versions of the behaviour policy, on average over iterations (which begin at multiples of
    ``updates``)."""
    begins = updates * np.arange(every // math.gcd(updates, every)).reshape(-1, 1, 1)
    return ((version + begins) // every * every - begins).mean(0)


def _drawn(
    flow: Flow, share: Floats, oldest: NDArray[np.int64], segments: _Segments
) -> tuple[Floats, Floats]:
    """How often segments of each kind are drawn, summed over the ages up to ``oldest``, and the same times
    the age."""
    age = np.arange(1, len(share) + 1)
    weight = share
    if flow.half_life is not None:
        # What may be drawn of each age, in iterations' worth of transitions.
        part = [(segments.length * (oldest >= a)).sum() / segments.length.sum() for a in age]
        mean_length = flow.decisions / math.ceil(flow.decisions / flow.segment_length)
        batch = flow.batch_segments * mean_length / (flow.steps * flow.envs)
        weight = share * _recency(share * np.array(part), flow.half_life, batch)
    counted = np.concatenate([[0.0], np.cumsum(weight)])[oldest]
    aged = np.concatenate([[0.0], np.cumsum(weight * age)])[oldest]
    return counted, aged


def _recency(drawable: Floats, half_life: float, batch: float) -> Floats:
    """The probability with which ``samplers.recency`` draws a segment of each age. Args: ``drawable``, of
    each age, and ``batch``, which is drawn, in iterations' worth of segments."""
    total = drawable.sum()
    if not total:
        return drawable
    # Ranks of the sampler: counted from the newest, in the middle of each part of each age.
    newer = np.cumsum(drawable) - drawable
    rank = (newer[:, None] + drawable[:, None] * (np.arange(PARTS) + 0.5) / PARTS) / total
    rate = 0.5 ** (rank / half_life)

    def taken(until: float) -> Floats:
        return (1 - np.exp(-rate * until)).mean(1)

    # Gumbel top-k keeps the segments whose exponential clocks of these rates ring first: until when?
    wanted = min(batch, 0.999 * total)
    logarithm = scipy.optimize.brentq(
        lambda own: (taken(math.exp(own)) * drawable).sum() - wanted, -20.0, 40.0
    )
    return taken(math.exp(logarithm))
