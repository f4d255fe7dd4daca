"""From drawn segments to what one forward sees.

Padding is dropped before the forward: the valid transitions of a micro-batch stand in a row of R, with an
index that puts their values back into the (N, L) grid on which credit works.

Shape suffixes: N segments, L transitions of a segment, R valid transitions of the micro-batch, K chunk, D
action dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from gipo_vla.policies.base import Observations
from gipo_vla.replay.segment import SegmentBatch


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one forward, on the learner's device."""

    observations: Observations
    """R rows."""
    tokens: Tensor
    """int64 (R, K, D)."""
    behaviour_log_probs: Tensor
    """float32 (R, K, D)."""
    behaviour_logits: Tensor | None
    """float16 (R, K, D, V)."""
    temperature: Tensor
    """float32 (R,)."""
    token_mask: Tensor
    """bool (R, K, D): tokens of executed actions."""
    lag: Tensor
    """float32 (R,), in updates."""
    lag_iterations: Tensor
    """float32 (R,)."""
    mask: Tensor
    """bool (N, L)."""
    places: Tensor
    """int64 (R,): where each row stands in the flattened grid."""
    rewards: Tensor
    """float32 (N, L, K), scaled."""
    executed: Tensor
    """int64 (N, L)."""
    terminated: Tensor
    """bool (N,)."""
    truncated: Tensor
    """bool (N,)."""
    stored_values: Tensor
    """float32 (N, L)."""
    stored_bootstrap_values: Tensor
    """float32 (N,)."""
    stored_advantages: Tensor
    """float32 (N, L)."""

    def grid(self, rows: Tensor) -> Tensor:
        """Put rows (R,) into the (N, L) grid, zero at padding."""
        grid = torch.zeros(self.mask.numel(), dtype=rows.dtype, device=rows.device)
        return grid.index_copy(0, self.places, rows).view(self.mask.shape)

    def rows(self, grid: Tensor) -> Tensor:
        """Take the rows (R,) back out of the (N, L) grid.

        By their places: indexing with the mask would make the host wait to learn how many there are.
        """
        return grid.flatten()[self.places]


def in_reverse(segments: SegmentBatch) -> tuple[SegmentBatch, np.ndarray]:
    """The segments with later ones of an episode before earlier ones, and int64 (N,) where the next one of
    each one's episode stands; -1 where it is not among them."""
    ordered = segments.rows(np.argsort(-segments.start, kind="stable"))
    keys = zip(ordered.env.tolist(), ordered.episode.tolist(), ordered.start.tolist(), strict=True)
    places = {key: place for place, key in enumerate(keys)}
    ends = (ordered.start + ordered.length).tolist()
    following = zip(ordered.env.tolist(), ordered.episode.tolist(), ends, strict=True)
    return ordered, np.array([places.get(key, -1) for key in following], np.int64)


def count_valid(segments: SegmentBatch) -> tuple[int, int]:
    """Valid transitions and valid tokens of drawn segments."""
    length, _, dims = segments.tokens.shape[1:4]
    mask = np.arange(length) < segments.length[:, None]
    transitions = int(mask.sum())
    return transitions, int((segments.executed * mask).sum()) * dims


def to_device(array: np.ndarray, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A copy of an array on the device, for which the host does not wait."""
    tensor = torch.as_tensor(array, dtype=dtype)
    if device.type == "cuda":
        # From pageable memory, even a copy that is asked not to block waits until the device has come to it.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def following_observations(segments: SegmentBatch, chosen: np.ndarray, device: torch.device) -> Observations:
    """What was seen after the last transition of the segments with these indices."""
    return {
        name: to_device(array[chosen, segments.length[chosen]], device)
        for name, array in segments.observations.items()
    }


def split(
    segments: SegmentBatch,
    sizes: Sequence[int],
    device: torch.device,
    reward_scale: float,
    version: int,
    iteration: int,
) -> Iterator[MicroBatch]:
    """Cut drawn segments into micro-batches of these many segments each; see ``micro_batches``."""
    for stop, size in zip(accumulate(sizes), sizes):
        yield _micro_batch(segments.rows(slice(stop - size, stop)), device, reward_scale, version, iteration)


def _micro_batch(
    part: SegmentBatch, device: torch.device, reward_scale: float, version: int, iteration: int
) -> MicroBatch:
    length, chunk, dims = part.tokens.shape[1:]
    mask = np.arange(length) < part.length[:, None]

    def tensor(array: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
        return to_device(array, device, dtype)

    row_index, column_index = np.nonzero(mask)
    executed_rows = part.executed[mask]
    token_mask = (np.arange(chunk) < executed_rows[:, None])[:, :, None].repeat(dims, axis=2)
    return MicroBatch(
        observations={
            name: tensor(array[row_index, column_index]) for name, array in part.observations.items()
        },
        tokens=tensor(part.tokens[mask], torch.int64),
        behaviour_log_probs=tensor(part.log_probs[mask]),
        behaviour_logits=tensor(part.logits[mask]) if part.logits is not None else None,
        temperature=tensor(part.temperature[mask]),
        token_mask=tensor(token_mask),
        lag=tensor((version - part.version[mask]).astype(np.float32)),
        lag_iterations=tensor((iteration - part.iteration[mask]).astype(np.float32)),
        mask=tensor(mask),
        places=tensor(np.flatnonzero(mask)),
        rewards=tensor(part.rewards * np.float32(reward_scale)),
        executed=tensor(part.executed, torch.int64),
        terminated=tensor(part.terminated),
        truncated=tensor(part.truncated),
        stored_values=tensor(part.values),
        stored_bootstrap_values=tensor(part.bootstrap_value),
        stored_advantages=tensor(part.advantages),
    )
