"""A whole model through its files: written, read, trained a little, exported, read again.

With the 7B that is 15 GB in 16 shards, twice (``conftest`` says how to ask for it):

    GIPO_FULL_SIZE=/somewhere OMP_NUM_THREADS=2 python -m pytest -m slow -k 7b tests/full_size
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gipo_vla.run.memory import GIB
from tests.full_size import steps
from tests.full_size.conftest import Published, Size, fail_without_memory

MOST_RESIDENT = 18 * GIB
UNIT_ROUNDOFF = 2.0**-8
"""Of bfloat16: the largest relative error of a value that is rounded once."""


def rounding_bound(size: Size) -> float:
    """Relative root mean square error of logits that bfloat16 allows two ways of the same sum.

    Merging rounds each weight once; the adapter beside its weight rounds what the weight gave once more. So
    every matrix has two independent relative errors of at most a unit roundoff each, and over the matrices
    that lie one behind the other errors add up like the root of their number.
    """
    tower = max(size.architecture.dino.live_depth, size.architecture.siglip.live_depth)
    # A block has one matrix of q, k and v, one of the output, one up (or gate) and one down in a row.
    in_a_row = 4 * tower + 3 + 4 * size.architecture.layers + 1
    return UNIT_ROUNDOFF * (2 * in_a_row) ** 0.5


def difference(logits: steps.Logits, other: steps.Logits) -> float:
    """Root mean square, relative to that of the second."""
    return float(np.linalg.norm(logits - other) / np.linalg.norm(other))


def test_what_is_read_is_what_was_written(size: Size, published: Published) -> None:
    digest, peak = size.call(steps.read, published.folder, size.chunk, size.action_size)
    assert digest == published.digest
    assert peak <= MOST_RESIDENT
    print(f"{size.name}: read with a peak of {peak / GIB:.2f} GiB")


def test_merged_weights_and_adapter_read_back_to_the_same_logits(size: Size, published: Published) -> None:
    if size.is_full:
        fail_without_memory()
    out: Path = size.folder / "export"
    sizes = (size.chunk, size.action_size)
    (plain, adapted), peak = size.call(steps.export_adapted, published.folder, *sizes, out, size.shard_bytes)
    assert peak <= MOST_RESIDENT
    merged, _ = size.call(steps.read_logits, out, *sizes)
    found, bound = difference(merged, adapted), rounding_bound(size)
    print(
        f"{size.name}: exported with a peak of {peak / GIB:.2f} GiB; merged differs by {found:.4f}, at most "
        f"{bound:.4f}"
    )
    assert 0 < found <= bound
    assert difference(plain, adapted) > 3 * bound, "adapters that change little would prove little"
    if size.is_full:
        fail_without_memory()  # what is merged while reading cannot stay mapped from the file
    beside, _ = size.call(steps.read_logits, out / "lora_adapter", *sizes, published.folder)
    assert np.array_equal(beside, merged), "merged while reading: the same sum, rounded once"
