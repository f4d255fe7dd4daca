"""Group-relative advantages, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gipo_envs.errors import UserError
from gipo_vla.credit import CreditBatch, GroupEpisode, GroupRelative, GroupSettings
from gipo_vla.settings.registry import credits


def episode(
    rewards: list[list[float]], executed: list[int], success: bool = False, group: tuple[int, int] = (0, 7)
) -> GroupEpisode:
    reward_array = np.array(rewards, np.float32)
    successes = np.zeros(reward_array.shape, bool)
    successes[-1, 0] = success
    return GroupEpisode(group, reward_array, np.array(executed), successes, terminated=success)


def group() -> list[GroupEpisode]:
    """Returns 3, 1 and 2; lengths 2, 1 and 3; the second alone succeeds. 99 and 50 were never executed."""
    return [
        episode([[1.0, 1.0], [1.0, 99.0]], [2, 1]),
        episode([[1.0, 50.0]], [1], success=True),
        episode([[0.0, 0.0], [1.0, 0.5], [0.5, 99.0]], [2, 2, 1]),
    ]


def test_returns_by_hand() -> None:
    # Mean 2, sample standard deviation 1.
    advantages = GroupRelative(GroupSettings()).on_group(group())
    assert [len(a) for a in advantages] == [2, 1, 3]
    for actual, expected in zip(advantages, (1.0, -1.0, 0.0)):
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_success_without_division_by_hand() -> None:
    # Outcomes 0, 1, 0: mean 1/3.
    credit = GroupRelative(GroupSettings(outcome="success_once", normalize_std=False))
    for actual, expected in zip(credit.on_group(group()), (-1 / 3, 2 / 3, -1 / 3)):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
    # With it: sample standard deviation sqrt(((2/3)^2 + 2 (1/3)^2) / 2) = sqrt(1/3).
    credit = GroupRelative(GroupSettings(outcome="success_once"))
    for actual, expected in zip(credit.on_group(group()), (-(3**-0.5), 2 * 3**-0.5, -(3**-0.5))):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_a_success_that_was_not_executed_does_not_count() -> None:
    fluke = group()[0]
    fluke.success[1, 1] = True  # the step after the episode's end
    credit = GroupRelative(GroupSettings(outcome="success_once", normalize_std=False))
    np.testing.assert_allclose(credit.on_group([fluke, group()[1]])[0], -0.5)


@pytest.mark.parametrize("normalize_std", [True, False])
def test_groups_that_say_nothing_get_zero(normalize_std: bool) -> None:
    credit = GroupRelative(GroupSettings(normalize_std=normalize_std))
    assert credit.on_group([]) == []
    assert credit.on_group([group()[0]])[0].tolist() == [0.0, 0.0]
    # Float32 numbers of different size, so that the mean of the seven rounds in float64.
    same = credit.on_group([episode([[0.3], [1e-9]], [1, 1])] * 7)
    assert [a.tolist() for a in same] == [[0.0, 0.0]] * 7


@settings(derandomize=True, deadline=None)
@given(
    outcomes=st.lists(st.integers(-50, 50), min_size=2, max_size=8),
    scale=st.sampled_from([0.5, 2.0, 100.0]),
    shift=st.integers(-10, 10),
)
def test_only_the_order_and_spacing_of_outcomes_matter(outcomes: list[int], scale: float, shift: int) -> None:
    credit = GroupRelative(GroupSettings())
    plain = np.concatenate(credit.on_group([episode([[x]], [1]) for x in outcomes]))
    moved = np.concatenate(credit.on_group([episode([[scale * x + shift]], [1]) for x in outcomes]))
    np.testing.assert_allclose(plain, moved, atol=1e-4)
    assert plain.sum() == pytest.approx(0, abs=1e-4)
    if len(set(outcomes)) > 1:
        assert plain.std(ddof=1) == pytest.approx(1, abs=1e-4)
        assert plain.argmax() == np.argmax(outcomes)


def test_groups_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="one group"):
        GroupRelative(GroupSettings()).on_group([group()[0], episode([[1.0]], [1], group=(1, 7))])


def test_stored_advantages_pass_through_the_batch() -> None:
    batch = CreditBatch(
        rewards=torch.zeros(1, 3, 1),
        executed=torch.ones(1, 3, dtype=torch.int64),
        mask=torch.tensor([[True, True, False]]),
        terminated=torch.tensor([False]),
        advantages=torch.tensor([[0.5, -1.5, torch.nan]]),
    )
    credit = GroupSettings().build()
    assert credit.needs_groups
    assert not credit.needs_values
    output = credit.on_batch(batch)
    assert output.advantages.tolist() == [[0.5, -1.5, 0.0]]
    assert output.value_targets is None
    without = CreditBatch(batch.rewards, batch.executed, batch.mask, batch.terminated)
    with pytest.raises(ValueError, match="needs the advantages"):
        credit.on_batch(without)


def test_bad_settings_are_explained() -> None:
    with pytest.raises(UserError, match=r"credit\.outcome is 'success': .*'return' or 'success_once'"):
        credits.validate({"name": "group", "outcome": "success"})
