"""The credit of the examples, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from gipo_envs.errors import UserError
from gipo_vla.credit import CreditBatch, GroupEpisode
from tests.examples.conftest import Example


def episode(rewards: Sequence[float]) -> GroupEpisode:
    steps = len(rewards)
    return GroupEpisode(
        group=0,
        rewards=np.array(rewards, np.float32)[:, None],
        executed=np.ones(steps, np.int64),
        success=np.zeros((steps, 1), np.bool_),
        terminated=False,
    )


def test_rewards_to_go_are_compared_with_those_of_siblings(example: Example) -> None:
    horizon = 1 / np.log(2)  # gamma = 1/2
    credit = example("own_credit").LeaveOneOutSettings(horizon=horizon).build()
    first, second, third = credit.on_group([episode([0, 0, 4]), episode([2]), episode([0, 2, 0])])
    # Rewards to go: (1, 2, 4), (2, 0, 0) and (1, 2, 0).
    np.testing.assert_allclose(first, [1 - 1.5, 2 - 1, 4 - 0], rtol=1e-6)
    np.testing.assert_allclose(second, [2 - 1], rtol=1e-6)
    np.testing.assert_allclose(third, [1 - 1.5, 2 - 1, 0 - 2], rtol=1e-6)
    assert first.dtype == np.float32


def test_what_was_not_executed_does_not_count(example: Example) -> None:
    credit = example("own_credit").LeaveOneOutSettings().build()
    cut = GroupEpisode(
        group=0,
        rewards=np.array([[1.0, 9.0]], np.float32),
        executed=np.array([1]),
        success=np.zeros((1, 2), np.bool_),
        terminated=True,
    )
    assert credit.on_group([cut, cut])[0] == 0
    assert credit.on_group([cut])[0] == pytest.approx(1.0)


def test_a_batch_gets_what_was_stored(example: Example) -> None:
    credit = example("own_credit").LeaveOneOutSettings().build()
    mask = torch.tensor([[True, True, False]])
    stored = torch.tensor([[1.0, -2.0, 7.0]])
    output = credit.on_batch(
        CreditBatch(torch.zeros(1, 3, 1), torch.ones(1, 3), mask, torch.tensor([True]), advantages=stored)
    )
    assert output.advantages.tolist() == [[1.0, -2.0, 0.0]] and output.value_targets is None


def test_refuses_a_horizon_that_makes_no_sense(example: Example) -> None:
    with pytest.raises(UserError, match=r"credit\.horizon"):
        example("own_credit").LeaveOneOutSettings(horizon=0.0)
