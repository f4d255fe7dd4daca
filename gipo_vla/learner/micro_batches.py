"""How a global batch is cut: into equal shares for the ranks, and each share into micro-batches.

A setting such as ``learner.micro_batch_segments`` is an upper bound: what one forward may hold. A share of S
is cut by a bound of B into M = ceil(S / B) micro-batches, the fewest that respect the bound, and the first
S mod M of them hold one more than the others. S is the same on every rank, and so are M and the sizes. An
update's loss is a sum divided by a count over the whole batch, so unequal micro-batches change no gradient.

With ``learner.micro_batch_rows`` M is the same, and ``even_cut`` shifts the cuts by what the segments hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from gipo_envs.errors import UserError


def rank_share(batch: int, ranks: int, setting: str) -> int:
    """What each rank gets of a global batch.

    Args:
        setting: the name of the batch's setting, for the error.

    Raises:
        UserError: the number of ranks does not divide the batch.
    """
    if batch % ranks:
        nearest = max(round(batch / ranks), 1) * ranks
        raise UserError(
            f"{setting} is {batch}, which {ranks} ranks (--nproc-per-node x --nnodes) cannot share equally: "
            f"set {setting} to a multiple of {ranks}, such as {nearest}, or change the number of ranks"
        )
    return batch // ranks


def micro_batch_sizes(share: int, most: int) -> tuple[int, ...]:
    """The sizes of the micro-batches of a rank's share, the largest first; they differ by one at most.

    Args:
        most: the upper bound of a size.
    """
    count = -(-share // most)
    return tuple(share // count + (index < share % count) for index in range(count))


def even_cut(rows: Sequence[int], count: int) -> tuple[int, ...]:
    """The sizes of ``count`` micro-batches of neighbouring segments whose greatest number of rows is least.

    Args:
        rows: valid transitions of each segment; at least one each, and at least as many as micro-batches.
    """
    ends = np.concatenate([[0], np.cumsum(rows)])

    def cuts(most: int) -> list[int] | None:
        """Where micro-batches of at most so many rows end; None if that makes too many of them."""
        found = [0]
        for left in range(count - 1, -1, -1):
            # Each later one needs a segment too.
            end = min(int(np.searchsorted(ends, ends[found[-1]] + most, "right")) - 1, len(rows) - left)
            found.append(end)
        return found if found[-1] == len(rows) else None

    low, high = max(rows), int(ends[-1])
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cuts(middle) else (middle + 1, high)
    best = cuts(low)
    assert best is not None
    return tuple(after - before for before, after in pairwise(best))
