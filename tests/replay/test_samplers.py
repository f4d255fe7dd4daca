"""What the samplers prefer."""

from __future__ import annotations

import numpy as np
import pytest

from gipo_vla.replay import samplers


def frequencies(sampler: samplers.Sampler, segments: int, count: int, draws: int) -> np.ndarray:
    """How often each segment is in a batch, 0 the oldest."""
    rng = np.random.default_rng(0)
    hits = np.zeros(segments)
    for _ in range(draws):
        chosen = sampler(segments, count, rng)
        assert len(set(chosen.tolist())) == count
        assert chosen.min() >= 0 and chosen.max() < segments
        hits[chosen] += 1
    return hits / draws


def test_uniform_prefers_nothing() -> None:
    hits = frequencies(samplers.uniform, 20, 5, 4000)
    # Expected 0.25 each, standard error 0.0068: five of them.
    np.testing.assert_allclose(hits, 0.25, atol=0.035)


def test_recency_halves_the_weight_every_half_life() -> None:
    hits = frequencies(samplers.recency(0.25), 20, 1, 40_000)
    weights = 0.5 ** ((19 - np.arange(20)) / 20 / 0.25)
    np.testing.assert_allclose(hits, weights / weights.sum(), atol=0.008)


@pytest.mark.parametrize("half_life", [1e-4, 0.01, 1.0])
def test_recency_can_draw_everything(half_life: float) -> None:
    """Weights that underflow must not make a batch impossible."""
    chosen = samplers.recency(half_life)(50, 50, np.random.default_rng(0))
    assert sorted(chosen.tolist()) == list(range(50))


def test_recency_of_a_short_half_life_draws_the_newest() -> None:
    chosen = samplers.recency(1e-4)(50, 10, np.random.default_rng(0))
    assert sorted(chosen.tolist()) == list(range(40, 50))
