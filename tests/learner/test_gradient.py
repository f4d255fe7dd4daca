"""The gradient of an update: what it is, and what must not change it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gipo_vla.credit.gae import GaeSettings
from gipo_vla.credit.group import GroupSettings
from gipo_vla.learner import optimizer
from gipo_vla.learner.learner import Learner
from gipo_vla.objectives.no_clip import NoClipSettings
from gipo_vla.objectives.regularizers import RegularizerSettings
from gipo_vla.replay.segment import SegmentBatch
from tests.learner.naive import NO_CLIPPING, VALUE_NAMES, assert_close, gradients, naive_gradients

MakeLearner = Callable[..., Learner]
MakeBatch = Callable[..., SegmentBatch]
RunUpdate = Callable[..., dict[str, float]]
Weights = Callable[[Learner], dict[str, torch.Tensor]]


def test_is_that_of_the_naive_loops(
    make_learner: MakeLearner, make_batch: MakeBatch, make_policy: Any, update: RunUpdate
) -> None:
    """Sum over valid tokens by their number; padding and actions that were not executed count nowhere."""
    batch = make_batch(2)
    assert batch.length.tolist() == [2, 1] and (batch.executed[:, 0] < 3).any()
    learner = make_learner(
        objective=NoClipSettings(),
        credit=GaeSettings(gamma=0.9, gae_lambda=0.8, normalize="none"),
        normalize="none",
        batch_segments=2,
        micro_batch_segments=2,
        reward_scale=0.5,
        **NO_CLIPPING,
    )
    metrics = update(learner, batch)
    expected = naive_gradients(make_policy(0), batch, 0.9, 0.8, 0.5)
    assert_close(gradients(learner), expected, 1e-4)
    flat = {
        group: torch.cat([expected[name].flatten() for name, _ in own])
        for group, own in make_policy(0).parameter_groups().items()
    }
    for group, gradient in flat.items():
        assert metrics[f"gradient_norm/{group}"] == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_segments_of_full_length_too(
    make_learner: MakeLearner, make_batch: MakeBatch, make_policy: Any, update: RunUpdate
) -> None:
    batch = make_batch(5, seed=3)
    assert batch.length.tolist() == [5, 4, 3, 2, 1]
    learner = make_learner(
        objective=NoClipSettings(),
        normalize="none",
        batch_segments=5,
        micro_batch_segments=1,
        **NO_CLIPPING,
    )
    update(learner, batch)
    assert_close(gradients(learner), naive_gradients(make_policy(0), batch, 0.995, 0.95, 1.0), 1e-4)


def test_vtrace_weighs_by_the_ratio_of_the_whole_chunk(
    make_learner: MakeLearner, make_batch: MakeBatch, make_policy: Any, update: RunUpdate
) -> None:
    """The product of the ratios of all executed tokens: not their mean, nor those of skipped actions."""
    batch = make_batch(5, seed=3)
    learner = make_learner(
        objective=NoClipSettings(),
        credit=GaeSettings(gamma=0.9, gae_lambda=0.8, importance_correction="vtrace"),
        normalize="none",
        batch_segments=5,
        micro_batch_segments=2,
        **NO_CLIPPING,
    )
    update(learner, batch)
    expected = naive_gradients(make_policy(0), batch, 0.9, 0.8, 1.0, vtrace=True)
    assert_close(gradients(learner), expected, 1e-4)
    plain = naive_gradients(make_policy(0), batch, 0.9, 0.8, 1.0)
    with pytest.raises(AssertionError):
        assert_close(expected, plain, 1e-2)


@pytest.mark.parametrize("normalize", ["running", "exact", "none"])
@pytest.mark.parametrize("zero_stage", [1, 2])
def test_does_not_depend_on_the_cut_into_micro_batches(
    make_learner: MakeLearner,
    make_batch: MakeBatch,
    update: RunUpdate,
    weights: Weights,
    normalize: str,
    zero_stage: int,
) -> None:
    learners = [
        make_learner(
            batch_segments=5,
            micro_batch_segments=most,
            normalize=normalize,
            zero_stage=zero_stage,
            regularizers=RegularizerSettings(entropy_coefficient=0.01, kl_behaviour_coefficient=0.1),
        )
        for most in (5, 4, 2, 1)
    ]
    assert [own.micro_batch_sizes for own in learners] == [(5,), (3, 2), (2, 2, 1), (1,) * 5]
    for number in range(3):
        batch = make_batch(5, seed=number)
        metrics = [update(learner, batch) for learner in learners]
        if number == 0:
            for learner in learners[1:]:
                assert_close(gradients(learner), gradients(learners[0]), 1e-5)
        for own in metrics[1:]:
            assert own.keys() == metrics[0].keys()
            for name, value in own.items():
                assert value == pytest.approx(metrics[0][name], rel=1e-3, abs=1e-4), name
    for learner in learners[1:]:
        # Adam divides by the root of the second moment: where a gradient is about 0 its rounding shows.
        for name, tensor in weights(learner).items():
            torch.testing.assert_close(tensor, weights(learners[0])[name], atol=1e-4, rtol=0)


def test_does_not_depend_on_the_order_of_the_segments(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate
) -> None:
    batch, learners = make_batch(4), [make_learner(micro_batch_segments=2, **NO_CLIPPING) for _ in range(2)]
    update(learners[0], batch)
    update(learners[1], batch.rows(np.array([2, 0, 3, 1])))
    assert_close(gradients(learners[1]), gradients(learners[0]), 1e-5)


def test_the_clips_of_policy_and_value_are_apart(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate, weights: Weights
) -> None:
    """A value loss a thousand times larger leaves the policy's step as it is, to the bit."""
    small, large = (make_learner(value_loss_coefficient=factor) for factor in (1.0, 1000.0))
    first, second = (update(learner, make_batch()) for learner in (small, large))
    assert first["gradient_norm/policy"] == second["gradient_norm/policy"]
    ratio = second["gradient_norm/value"] / first["gradient_norm/value"]
    assert ratio == pytest.approx(1000, rel=1e-4)
    norm = torch.cat([gradients(large)[name].flatten() for name in VALUE_NAMES]).norm()
    assert float(norm) == pytest.approx(1.0, rel=1e-4), "clipped to value_gradient_clip"
    for name in weights(small).keys() - VALUE_NAMES:
        assert torch.equal(gradients(small)[name], gradients(large)[name]), name
        assert torch.equal(weights(small)[name], weights(large)[name]), name


def test_policy_gradients_are_clipped_to_their_norm(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate
) -> None:
    learner = make_learner(policy_gradient_clip=1e-3)
    metrics = update(learner, make_batch())
    own = gradients(learner)
    norm = torch.cat([own[name].flatten() for name in own.keys() - VALUE_NAMES]).norm()
    assert metrics["gradient_norm/policy"] > 1e-2, "logged before clipping"
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95, 1.05, 3.0])
def test_a_gradient_is_clipped_from_its_norm_on_and_not_before(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate, share: float
) -> None:
    """With a clip of that share of the norm, the step is taken with the smaller of clip and norm."""
    free = make_learner(**NO_CLIPPING)
    unclipped = update(free, make_batch())
    norms = {group: unclipped[f"gradient_norm/{group}"] for group in ("policy", "value")}
    learner = make_learner(
        policy_gradient_clip=share * norms["policy"], value_gradient_clip=share * norms["value"]
    )
    metrics, own, whole = update(learner, make_batch()), gradients(learner), gradients(free)
    for group, names in (("value", VALUE_NAMES), ("policy", own.keys() - VALUE_NAMES)):
        assert metrics[f"gradient_norm/{group}"] == norms[group], "logged before clipping"
        for name in names:
            torch.testing.assert_close(own[name], min(share, 1.0) * whole[name], rtol=1e-4, atol=1e-8)


def test_the_norm_of_a_long_vector_is_taken_in_parts(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = make_learner(**NO_CLIPPING), make_learner(**NO_CLIPPING)
    expected = update(whole, make_batch())
    monkeypatch.setattr(optimizer, "PART", 7)
    metrics = update(parts, make_batch())
    for group in ("policy", "value"):
        assert metrics[f"gradient_norm/{group}"] == pytest.approx(
            expected[f"gradient_norm/{group}"], rel=1e-12
        )


def test_values_come_from_the_training_forward(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner(micro_batch_segments=2)
    forwards, valued = [], []
    policy: Any = learner.policy
    for method, calls in (("evaluate", forwards), ("forward", forwards), ("value", valued)):
        plain = getattr(policy, method)

        def counted(*arguments: Any, plain: Any = plain, calls: list[int] = calls) -> Any:
            calls.append(len(arguments[0]["state"]))
            return plain(*arguments)

        monkeypatch.setattr(policy, method, counted)
    batch = make_batch(4)
    update(learner, batch)
    assert batch.length.tolist() == [4, 3, 2, 1]
    ends = int((~batch.terminated).sum())
    assert 0 < ends < 4
    assert forwards == [7, 3] * 2, "the very first batch also sets the statistics"
    assert valued == [ends], "one forward of what follows the segments that did not end their task"
    forwards.clear(), valued.clear()
    update(learner, batch)
    assert forwards == [7, 3], "one forward of the valid transitions"
    assert valued == [ends]


def test_stored_values_are_used_where_asked_for(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate, weights: Weights
) -> None:
    batch, changed = make_batch(), make_batch()
    mask = np.arange(5) < changed.length[:, None]
    changed.values[mask] += 1.0
    changed.bootstrap_value[:] += 1.0
    for stored in (False, True):
        learners = [make_learner(stored_values=stored) for _ in range(2)]
        update(learners[0], batch)
        update(learners[1], changed)
        first, second = (weights(learner) for learner in learners)
        assert all(torch.equal(first[name], second[name]) for name in first) != stored


def test_group_credit_trains_the_policy_alone(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate, weights: Weights
) -> None:
    learner = make_learner(credit=GroupSettings(), normalize="none")
    before = weights(learner)
    metrics = update(learner, make_batch())
    for name, tensor in weights(learner).items():
        assert torch.equal(tensor, before[name]) == (name in VALUE_NAMES), name
    assert metrics["gradient_norm/value"] == 0 and metrics["loss/value"] == 0


def test_an_exact_kl_uses_the_stored_logits(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate
) -> None:
    settings = RegularizerSettings(kl_behaviour_coefficient=0.1, kl_behaviour="exact")
    first = update(make_learner(regularizers=settings), make_batch())
    batch = make_batch()
    assert batch.logits is not None
    batch.logits[:] *= np.float16(0.5)
    second = update(make_learner(regularizers=settings), batch)
    assert first["policy/kl_behaviour"] > 0
    assert first["policy/kl_behaviour"] != pytest.approx(second["policy/kl_behaviour"], rel=1e-3)


def test_kl_to_the_reference_starts_at_zero(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate, make_policy: Any
) -> None:
    for estimator in ("k3", "exact"):
        settings = RegularizerSettings(kl_reference_coefficient=0.1, kl_reference=estimator)  # type: ignore[arg-type]
        learner = make_learner(regularizers=settings, reference=make_policy(0).twin())
        first, second = update(learner, make_batch()), update(learner, make_batch())
        assert first["policy/kl_reference"] == pytest.approx(0, abs=1e-6)
        assert second["policy/kl_reference"] > 1e-5
