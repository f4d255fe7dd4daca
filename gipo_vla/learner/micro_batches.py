"""How a global batch is cut: into equal shares for the ranks, and each share into micro-batches.

A setting such as ``learner.micro_batch_segments`` is an upper bound: what one forward may hold. A share of S
is cut by a bound of B into M = ceil(S / B) micro-batches, the fewest that respect the bound, and the first
S mod M of them hold one more than the others. S is the same on every rank, and so are M and the sizes. An
update's loss is a sum divided by a count over the whole batch, so unequal micro-batches change no gradient.
"""

from __future__ import annotations

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
