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
    following: Observations
    """N rows: the observation after each segment."""
    mask: Tensor
    """bool (N, L)."""
    rewards: Tensor
    """float32 (N, L, K), scaled."""
    executed: Tensor
    """int64 (N, L)."""
    terminated: Tensor
    """bool (N,)."""
    stored_values: Tensor
    """float32 (N, L)."""
    stored_bootstrap_values: Tensor
    """float32 (N,)."""
    stored_advantages: Tensor
    """float32 (N, L)."""

    def grid(self, rows: Tensor) -> Tensor:
        """Put rows (R,) into the (N, L) grid, zero at padding."""
        grid = torch.zeros(self.mask.shape, dtype=rows.dtype, device=rows.device)
        grid[self.mask] = rows
        return grid


def count_valid(segments: SegmentBatch) -> tuple[int, int]:
    """Valid transitions and valid tokens of drawn segments."""
    length, _, dims = segments.tokens.shape[1:4]
    mask = np.arange(length) < segments.length[:, None]
    transitions = int(mask.sum())
    return transitions, int((segments.executed * mask).sum()) * dims


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
    count, length, chunk, dims = part.tokens.shape
    mask = np.arange(length) < part.length[:, None]

    def tensor(array: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
        return torch.as_tensor(array, dtype=dtype).to(device, non_blocking=True)

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
        following={
            name: tensor(array[np.arange(count), part.length]) for name, array in part.observations.items()
        },
        mask=tensor(mask),
        rewards=tensor(part.rewards * np.float32(reward_scale)),
        executed=tensor(part.executed, torch.int64),
        terminated=tensor(part.terminated),
        stored_values=tensor(part.values),
        stored_bootstrap_values=tensor(part.bootstrap_value),
        stored_advantages=tensor(part.advantages),
    )
