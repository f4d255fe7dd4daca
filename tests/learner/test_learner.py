"""Updates that are skipped, counted, saved and described."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from gipo_envs.errors import UserError
from gipo_vla.distributed import group
from gipo_vla.learner.batch import count_valid, following_observations, split
from gipo_vla.learner.learner import Learner, NonFiniteError
from gipo_vla.replay.segment import SegmentBatch

MakeLearner = Callable[..., Learner]
MakeBatch = Callable[..., SegmentBatch]
RunUpdate = Callable[..., dict[str, float]]
Weights = Callable[[Learner], dict[str, torch.Tensor]]


def spoil(batch: SegmentBatch, value: float = np.nan) -> SegmentBatch:
    """The same batch with one reward that is not a number."""
    batch = deepcopy(batch)
    batch.rewards[0, 0, 0] = value
    return batch


def assert_same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("normalize", ["running", "exact", "none"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("zero_stage", [1, 2])
def test_a_non_finite_batch_leaves_no_trace(
    make_learner: MakeLearner,
    make_batch: MakeBatch,
    update: RunUpdate,
    weights: Weights,
    value: float,
    normalize: str,
    first: bool,
    zero_stage: int,
) -> None:
    """Skipped, counted, no version; afterwards everything is as if it had never been drawn."""
    hit, plain = (
        make_learner(normalize=normalize, micro_batch_segments=2, zero_stage=zero_stage) for _ in range(2)
    )
    if not first:
        update(hit, make_batch(seed=1))
        update(plain, make_batch(seed=1))
    before, version = weights(hit), hit.version
    assert update(hit, spoil(make_batch(seed=2), value)) == {"learner/skipped": 1.0}
    assert_same_weights(weights(hit), before)
    assert (hit.version, hit.attempted, hit.skipped) == (version, version + 1, 1)
    for seed in (3, 4):
        metrics = update(hit, make_batch(seed=seed, version=version))
        expected = update(plain, make_batch(seed=seed, version=version))
        assert metrics == expected and metrics["learner/skipped"] == 0.0
        assert_same_weights(weights(hit), weights(plain))
    assert (hit.version, hit.attempted, hit.skipped) == (version + 2, version + 3, 1)
    saved, other = hit.optimizer_tensors(), plain.optimizer_tensors()
    assert_same_weights(saved, other)


def test_too_many_in_a_row_stop_the_run(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate
) -> None:
    learner = make_learner(max_nonfinite_updates=3)
    bad = spoil(make_batch())
    for _ in range(2):  # a good one between starts the count anew
        update(learner, bad)
        update(learner, bad)
        update(learner, make_batch())
    update(learner, bad)
    update(learner, bad)
    with pytest.raises(NonFiniteError, match=r"3 updates in a row.*max_nonfinite_updates"):
        update(learner, bad)
    assert learner.skipped == 7 and learner.version == 2


def test_learning_rates_follow_the_schedule(make_learner: MakeLearner) -> None:
    learner = make_learner(
        schedule="cosine", warmup_iterations=2, schedule_iterations=10, final_learning_rate_fraction=0.1
    )
    for progress, factor in ((0, 0.0), (1.5, 0.75), (2, 1.0), (6, 0.55), (10, 0.1), (40, 0.1)):
        assert learner.set_progress(progress) == pytest.approx(factor)
        rates = {own["name"]: own["lr"] for own in learner.optimizer.param_groups}
        assert rates == {"policy": pytest.approx(1e-2 * factor), "value": pytest.approx(2e-2 * factor)}


def test_a_learning_rate_of_zero_changes_no_weight(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate, weights: Weights
) -> None:
    learner = make_learner(warmup_iterations=2)
    before = weights(learner)
    learner.set_progress(0.0)
    update(learner, make_batch())
    assert_same_weights(weights(learner), before)
    learner.set_progress(0.5)
    update(learner, make_batch())
    assert not torch.equal(weights(learner)["actor.0.weight"], before["actor.0.weight"])


def test_the_schedule_ends_with_the_run_unless_told_otherwise(make_learner: MakeLearner) -> None:
    assert make_learner().total_iterations == 10
    assert make_learner(schedule_iterations=77).total_iterations == 77


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_saved_tensors_continue_to_the_bit(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate, weights: Weights, zero_stage: int
) -> None:
    arguments: dict[str, Any] = {
        "micro_batch_segments": 2,
        "zero_stage": zero_stage,
        "value_scale": "running",
    }
    learner, other = make_learner(0, **arguments), make_learner(5, **arguments)
    for seed in range(3):
        update(learner, make_batch(seed=seed))
    update(learner, spoil(make_batch()))
    tensors, counters = learner.optimizer_tensors(), json.loads(json.dumps(learner.counters()))
    names = {name for name, _ in learner.policy.named_parameters()}  # type: ignore[attr-defined]
    assert {name.partition("/")[2] for name in tensors if not name.startswith("step/")} == names
    assert tensors["step/policy"] == 3

    other.load_optimizer_tensors(tensors)
    other.load_counters(counters)
    assert_same_weights(weights(other), weights(learner))
    assert (other.version, other.attempted, other.skipped) == (3, 4, 1)
    for seed in range(3, 6):
        batch = make_batch(seed=seed)
        assert update(other, batch) == update(learner, batch)
        assert_same_weights(weights(other), weights(learner))
    assert update(other, spoil(make_batch())) == {"learner/skipped": 1.0} and other.version == 6


def test_saved_tensors_are_copies(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate
) -> None:
    learner = make_learner()
    update(learner, make_batch())
    tensors = learner.optimizer_tensors()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    update(learner, make_batch(seed=1))
    assert_same_weights(tensors, before)


def test_batches_that_ranks_cannot_share_are_refused(
    make_learner: MakeLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "world_size", lambda: 2)
    with pytest.raises(UserError, match=r"learner\.batch_segments is 5, which 2 ranks .* cannot share"):
        make_learner(batch_segments=5)


@pytest.mark.parametrize(("most", "sizes"), [(1, (1, 1, 1)), (2, (2, 1)), (3, (3,)), (32, (3,))])
def test_a_share_is_cut_by_the_bound(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate, most: int, sizes: tuple[int, ...]
) -> None:
    learner = make_learner(batch_segments=3, micro_batch_segments=most)
    assert learner.micro_batch_sizes == sizes
    assert learner.engine.gradient_accumulation_steps() == learner.micro_batches == len(sizes)
    assert learner.engine.train_micro_batch_size_per_gpu() == sizes[0]
    begun = learner.begin(make_batch(3), 3)
    assert tuple(len(batch.mask) for batch in begun.micro_batches) == sizes
    assert update(learner, make_batch(3))["learner/skipped"] == 0 and learner.engine.global_steps == 1


def test_valid_tokens_are_counted(make_batch: MakeBatch) -> None:
    batch = make_batch(4)
    expected = sum(int(batch.executed[n, : batch.length[n]].sum()) for n in range(4))
    assert count_valid(batch) == (10, 2 * expected)


def test_micro_batches_hold_the_valid_transitions_in_order(make_batch: MakeBatch) -> None:
    batch = make_batch(4)
    parts = list(split(batch, (2, 2), torch.device("cpu"), 0.5, version=9, iteration=4))
    assert [len(part.mask) for part in parts] == [2, 2]
    row = 0
    for part_number, part in enumerate(parts):
        row = 0
        for n in range(2):
            segment = 2 * part_number + n
            length = int(batch.length[segment])
            assert part.mask[n].tolist() == [t < length for t in range(5)]
            following = batch.observations["state"][segment, length]
            after = following_observations(batch, np.array([segment]), torch.device("cpu"))
            np.testing.assert_array_equal(after["state"][0], following)
            for t in range(length):
                np.testing.assert_array_equal(
                    part.observations["state"][row], batch.observations["state"][segment, t]
                )
                np.testing.assert_array_equal(part.tokens[row], batch.tokens[segment, t])
                np.testing.assert_array_equal(part.behaviour_log_probs[row], batch.log_probs[segment, t])
                executed = int(batch.executed[segment, t])
                assert part.token_mask[row].tolist() == [[i < executed] * 2 for i in range(3)]
                assert (part.lag[row], part.lag_iterations[row]) == (9, 3)
                row += 1
            np.testing.assert_array_equal(part.rewards[n, :length], batch.rewards[segment, :length] / 2)
        assert len(part.tokens) == row
        grid = part.grid(torch.arange(1.0, row + 1))
        assert grid[part.mask].tolist() == list(range(1, row + 1)) and not grid[~part.mask].any()
        assert part.rows(grid).tolist() == list(range(1, row + 1))


def test_metrics_describe_the_update(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate
) -> None:
    learner = make_learner(micro_batch_segments=2, normalize="exact")
    batch = make_batch()
    batch.version[:] = -np.arange(4)[:, None]
    batch.iteration[:] = 3 - np.arange(4)[:, None]
    metrics = update(learner, batch, iteration=3)
    # Lengths 4, 3, 2, 1 and lags 0, 1, 2, 3.
    assert metrics["staleness/lag_iterations_mean"] == pytest.approx((3 + 4 + 3) / 10)
    assert metrics["staleness/lag_iterations_max"] == 3 == metrics["staleness/lag_max"]
    assert metrics["advantage/mean"] == pytest.approx(0, abs=1e-6)
    assert metrics["advantage/std"] == pytest.approx(1, abs=1e-5)
    assert 0 < metrics["policy/entropy"] <= np.log(8) + 1e-6
    assert metrics["value/explained_variance"] < 1
    assert all(np.isfinite(value) for value in metrics.values())
