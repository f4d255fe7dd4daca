"""What trains the value alone, how often the policy trains, and the scale of value errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gipo_envs.errors import UserError
from gipo_vla.credit.gae import GaeSettings
from gipo_vla.credit.group import GroupSettings
from gipo_vla.learner.learner import Learner
from gipo_vla.objectives.no_clip import NoClipSettings
from gipo_vla.objectives.regularizers import RegularizerSettings
from gipo_vla.replay.segment import SegmentBatch
from tests.learner.naive import NO_CLIPPING, VALUE_NAMES, assert_close, naive_gradients, naive_loss

MakeLearner = Callable[..., Learner]
MakeBatch = Callable[..., SegmentBatch]
RunUpdate = Callable[..., dict[str, float]]
Weights = Callable[[Learner], dict[str, torch.Tensor]]


def test_value_only_updates_leave_the_policy_alone(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate, weights: Weights
) -> None:
    learner = make_learner(value_only_updates=2, regularizers=RegularizerSettings(entropy_coefficient=0.1))
    before = weights(learner)
    for number in range(2):
        update(learner, make_batch(seed=number))
        now = weights(learner)
        assert all(torch.equal(now[name], before[name]) == (name not in VALUE_NAMES) for name in now)
    update(learner, make_batch(seed=2))
    now = weights(learner)
    assert not any(torch.equal(now[name], before[name]) for name in now)
    assert learner.version == 3


@pytest.mark.parametrize("reward_scale", [1.0, 40.0])
def test_values_are_in_units_of_recent_targets(
    make_learner: MakeLearner, make_batch: MakeBatch, make_policy: Any, update: RunUpdate, reward_scale: float
) -> None:
    """The first update by 1, the second by the root mean square of the first one's targets."""
    options: dict[str, Any] = {
        "objective": NoClipSettings(),
        "credit": GaeSettings(gamma=0.9, gae_lambda=0.8, normalize="none"),
        "normalize": "none",
        "reward_scale": reward_scale,
        **NO_CLIPPING,
    }
    learner, plain, moved = (
        make_learner(value_scale="running", **options),
        make_learner(**options),
        make_policy(0),
    )
    first, ordinary = update(learner, make_batch(seed=1)), update(plain, make_batch(seed=1))
    assert first.pop("value/scale") == 1.0 and first == ordinary
    before = learner.optimizer_tensors()
    _, targets = naive_loss(make_policy(0), make_batch(seed=1), 0.9, 0.8, reward_scale)
    scale = np.sqrt(np.mean(np.square(targets)))
    moved.load_state_dict(learner.policy.state_dict())  # type: ignore[attr-defined]
    assert update(learner, make_batch(seed=2))["value/scale"] == pytest.approx(scale, rel=1e-5)
    expected = naive_gradients(moved, make_batch(seed=2), 0.9, 0.8, reward_scale, value_scale=scale)
    after = learner.optimizer_tensors()
    own = {n: (after[f"exp_avg/{n}"] - 0.9 * before[f"exp_avg/{n}"]) / 0.1 for n in expected}
    assert_close(own, expected, 1e-3)


def test_returns_of_any_scale_give_the_same_gradient(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate
) -> None:
    """Once the scale is known: rewards a thousand times as large change no step of policy or value."""
    learners = [make_learner(value_scale="running", reward_scale=scale) for scale in (1.0, 1000.0)]
    for learner, factor in zip(learners, (1.0, 1000.0)):
        learner.value_scale.load_state_dict({"count": 8.0, "sum": 0.0, "sum_of_squares": 8.0 * factor**2})
    first, second = (update(learner, make_batch()) for learner in learners)
    assert second["value/target_mean"] == pytest.approx(1000 * first["value/target_mean"], rel=1e-4)
    for name in ("loss/value", "gradient_norm/value", "gradient_norm/policy", "value/explained_variance"):
        assert second[name] == pytest.approx(first[name], rel=1e-4), name


def test_values_of_other_times_are_refused(make_learner: MakeLearner) -> None:
    with pytest.raises(UserError, match=r"learner\.value_scale=running.*credit\.values=recomputed") as caught:
        make_learner(value_scale="running", stored_values=True)
    assert "\n" not in str(caught.value)


def test_targets_of_zero_are_not_blown_up(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate
) -> None:
    learner = make_learner(value_scale="running", credit=GaeSettings(gamma=0.0), reward_scale=0.0)
    scales = [update(learner, make_batch(seed=seed))["value/scale"] for seed in range(3)]
    assert scales == [1.0, 1e-3, 1e-3] and learner.skipped == 0


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_the_policy_rests_between_its_gradients(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate, weights: Weights, zero_stage: int
) -> None:
    """With ``policy_every=3`` it moves in the updates 3, 6, ... and momentum does not carry it on in
    between."""
    learner = make_learner(policy_every=3, zero_stage=zero_stage)
    for number in range(1, 8):
        before = weights(learner)
        metrics = update(learner, make_batch(seed=number))
        now = weights(learner)
        moved = {name for name in now if not torch.equal(now[name], before[name])}
        assert moved == (now.keys() if number % 3 == 0 else VALUE_NAMES)
        assert ("gradient_norm/policy" in metrics) == (number % 3 == 0)
        assert list(metrics)[-1] != "gradient_norm/policy", "the order of the groups"
        assert learner.optimizer_tensors()["step/policy"] == number // 3
        assert learner.optimizer_tensors()["step/value"] == number == learner.version


def test_a_policy_gradient_between_rests_is_as_ever(
    make_learner: MakeLearner, make_batch: MakeBatch, make_policy: Any, update: RunUpdate
) -> None:
    """The second update's, of a policy that stood still and a value that did not: GAE knows the new value."""
    options: dict[str, Any] = {
        "objective": NoClipSettings(),
        "credit": GaeSettings(gamma=0.9, gae_lambda=0.8, normalize="none"),
        "normalize": "none",
        **NO_CLIPPING,
    }
    learner, moved = make_learner(policy_every=2, **options), make_policy(0)
    update(learner, make_batch(seed=1))
    moved.load_state_dict(learner.policy.state_dict())  # type: ignore[attr-defined]
    update(learner, make_batch(seed=2))
    tensors = learner.optimizer_tensors()
    expected = naive_gradients(moved, make_batch(seed=2), 0.9, 0.8, 1.0)
    own = {name: tensors[f"exp_avg/{name}"] / 0.1 for name in expected if name not in VALUE_NAMES}
    assert_close(own, {name: expected[name] for name in own}, 1e-4)


def test_resting_is_refused_where_no_value_trains(make_learner: MakeLearner) -> None:
    with pytest.raises(UserError, match=r"learner\.policy_every is 2.*trains no value") as caught:
        make_learner(credit=GroupSettings(), normalize="none", policy_every=2)
    assert "\n" not in str(caught.value)
