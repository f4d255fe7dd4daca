"""Shares and micro-batches: as equal as they can be, and never above their bound."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gipo_envs.errors import UserError
from gipo_vla.learner.micro_batches import even_cut, micro_batch_sizes, rank_share


@given(share=st.integers(1, 300), most=st.integers(1, 300))
def test_micro_batches_are_the_fewest_and_the_most_equal(share: int, most: int) -> None:
    sizes = micro_batch_sizes(share, most)
    assert sum(sizes) == share
    assert min(sizes) >= 1 and max(sizes) == sizes[0] <= most and max(sizes) - min(sizes) <= 1
    assert len(sizes) == 1 or (len(sizes) - 1) * most < share, "one fewer could not hold them"
    if share % most == 0:
        assert sizes == (most,) * (share // most)


@given(rows=st.lists(st.integers(1, 8), min_size=1, max_size=8), data=st.data())
def test_an_even_cut_has_the_least_greatest_part(rows: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(rows)))
    sizes = even_cut(rows, count)
    assert len(sizes) == count and min(sizes) >= 1 and sum(sizes) == len(rows)

    def greatest(of: Sequence[int]) -> int:
        ends = [0, *accumulate(of)]
        return max(sum(rows[start:stop]) for start, stop in pairwise(ends))

    every = (
        [after - before for before, after in pairwise([0, *inner, len(rows)])]
        for inner in combinations(range(1, len(rows)), count - 1)
    )
    assert greatest(sizes) == min(map(greatest, every))


@pytest.mark.parametrize(("batch", "ranks", "share"), [(32, 1, 32), (32, 8, 4), (7, 7, 1)])
def test_ranks_share_equally(batch: int, ranks: int, share: int) -> None:
    assert rank_share(batch, ranks, "learner.batch_segments") == share


@pytest.mark.parametrize(("batch", "ranks", "nearest"), [(33, 2, 32), (1, 4, 4), (5, 3, 6)])
def test_a_batch_that_ranks_do_not_divide_is_refused_in_one_line(
    batch: int, ranks: int, nearest: int
) -> None:
    with pytest.raises(UserError) as caught:
        rank_share(batch, ranks, "learner.batch_segments")
    message = str(caught.value)
    assert f"learner.batch_segments is {batch}, which {ranks} ranks" in message
    assert "--nproc-per-node" in message and f"such as {nearest}," in message and "\n" not in message
