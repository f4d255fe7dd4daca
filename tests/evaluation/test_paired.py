"""Paired comparisons of two policies."""

from __future__ import annotations

import pytest

from gipo_vla.evaluation.episodes import EpisodeResult
from gipo_vla.evaluation.paired import compare, difference_interval
from gipo_vla.rollout.episodes import EpisodePlan


def episodes(successes: list[bool], first_state: int = 0) -> list[EpisodeResult]:
    return [
        EpisodeResult(
            EpisodePlan(0, first_state + index, index, 10, True, episode=index), success_once=success
        )
        for index, success in enumerate(successes)
    ]


def test_counts_and_the_exact_test() -> None:
    first = episodes([True] * 9 + [False] * 1 + [True] * 5 + [False] * 5)
    second = episodes([False] * 9 + [True] * 1 + [True] * 5 + [False] * 5)
    found = compare(first, second)
    assert (found["only_first"], found["only_second"], found["episodes"]) == (9, 1, 20)
    assert found["difference"] == pytest.approx(0.4)
    # Of ten coins nine or more, or one or fewer: 2 * (1 + 10) / 1024.
    assert found["p_value"] == pytest.approx(22 / 1024)
    low, high = found["difference_interval_95"]
    assert 0 < low < 0.4 < high < 0.7
    mirrored = compare(second, first)
    assert mirrored["p_value"] == found["p_value"]
    assert mirrored["difference_interval_95"] == [-high, -low]


def test_policies_that_never_differ() -> None:
    found = compare(episodes([True, False] * 10), episodes([True, False] * 10))
    assert (found["difference"], found["p_value"]) == (0, 1)
    low, high = found["difference_interval_95"]
    assert low <= 0 <= high


def test_newcombes_example() -> None:
    """Newcombe 1998, method 10."""
    assert difference_interval(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-4)


def test_agreement_narrows_the_interval() -> None:
    def width(*counts: int) -> float:
        low, high = difference_interval(*counts)
        return high - low

    assert width(45, 10, 0, 45) < width(25, 30, 20, 25)  # the same rates, 0.55 and 0.45


def test_other_states_are_refused() -> None:
    with pytest.raises(AssertionError):
        compare(episodes([True]), episodes([True], first_state=1))
