"""How a batch is cut and where its last values come from change nothing of what is learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gipo_vla.credit.gae import GaeSettings
from gipo_vla.learner.batch import in_reverse
from gipo_vla.learner.learner import Learner
from gipo_vla.replay.segment import SegmentBatch

EPISODE, OTHER = 3, 4


@pytest.fixture
def one_episode(make_batch: Any) -> SegmentBatch:
    """Four segments of which three follow one another (in the order 2, 0, 3), ending in a termination; the
    observation that follows one is the first of the next."""
    batch = make_batch()
    lengths = batch.length
    batch.env[:], batch.episode[:], batch.start[:] = 0, [EPISODE, OTHER, EPISODE, EPISODE], 0
    batch.start[0], batch.start[3] = lengths[2], lengths[2] + lengths[0]
    batch.terminated[:], batch.truncated[:] = [False, False, False, True], False
    for before, after in ((2, 0), (0, 3)):
        for array in batch.observations.values():
            array[before, lengths[before]] = array[after, 0]
    return batch


def test_later_segments_stand_before_earlier_ones(one_episode: SegmentBatch) -> None:
    ordered, following = in_reverse(one_episode)
    assert sorted(ordered.start.tolist(), reverse=True) == ordered.start.tolist()
    for place, (segment, other) in enumerate(zip(ordered, following.tolist(), strict=True)):
        if segment.episode == EPISODE and not segment.terminated:
            assert other < place and ordered.start[other] == segment.start + segment.length
            assert ordered.episode[other] == EPISODE
        else:
            assert other == -1


@pytest.mark.parametrize("normalize", ["running", "exact"])
@pytest.mark.parametrize("credit", [GaeSettings(), GaeSettings(importance_correction="vtrace")], ids=str)
@pytest.mark.parametrize("micro_batch_segments", [1, 2, 4])
def test_values_are_those_of_a_forward_of_their_own(
    make_learner: Any,
    one_episode: SegmentBatch,
    update: Any,
    weights: Any,
    monkeypatch: pytest.MonkeyPatch,
    micro_batch_segments: int,
    credit: Any,
    normalize: Any,
) -> None:
    found = []
    for reuse in (False, True):
        learner: Learner = make_learner(
            micro_batch_segments=micro_batch_segments, reuse_values=reuse, credit=credit, normalize=normalize
        )
        asked: list[int] = []
        plain = learner.policy.value

        def value(observations: Any, asked: list[int] = asked, plain: Any = plain) -> torch.Tensor:
            asked.append(len(observations["state"]))
            return plain(observations)

        monkeypatch.setattr(learner.policy, "value", value)
        metrics = [update(learner, one_episode) for _ in range(2)]
        assert asked == [1 if reuse else 3] * 2
        found.append((metrics, weights(learner)))
    (plain_metrics, plain_weights), (own_metrics, own_weights) = found
    for ours, theirs in zip(own_metrics, plain_metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4, abs=1e-6)
    torch.testing.assert_close(own_weights, plain_weights, rtol=1e-4, atol=1e-5)


def test_nothing_is_reused_where_no_segment_goes_on(make_learner: Any, make_batch: Any, update: Any) -> None:
    """Of one episode, but with a gap."""
    batch = make_batch()
    batch.env[:], batch.episode[:], batch.start[:] = 0, EPISODE, 10 * np.arange(len(batch))
    batch.terminated[:] = False
    plain = update(make_learner(), batch)
    assert update(make_learner(reuse_values=True), batch) == pytest.approx(plain, rel=1e-4, abs=1e-6)


def test_a_cut_by_rows_learns_the_same(
    make_learner: Any, make_batch: Any, update: Any, weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch(8)  # of 3, 2, 1, 5, 4, 3, 2, 1 transitions
    found, cuts = [], []
    for rows in (None, 10):
        learner = make_learner(batch_segments=8, micro_batch_segments=2, micro_batch_rows=rows)
        own = learner.begin(batch, 3)
        cuts.append([len(part.tokens) for part in own.micro_batches])
        for index in range(learner.micro_batches):
            learner.micro_step(own, index)
        found.append((learner.end(own), weights(learner)))
    assert cuts == [[5, 6, 7, 3], [6, 5, 4, 6]]
    assert found[1][0] == pytest.approx(found[0][0], rel=2e-4, abs=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-5)
