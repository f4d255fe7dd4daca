"""Diagnostics of staleness: values worked out by hand, and independence of how an update is cut."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gipo_vla.objectives import (
    GipoSettings,
    ObjectiveOutput,
    PpoSettings,
    StalenessDiagnostics,
    objective_loss,
    staleness_metrics,
)
from gipo_vla.objectives.diagnostics import effective_sample_size, quantiles


def pack(
    log_ratio: list[float], coefficient: list[float], advantage: list[float], lag: list[float]
) -> Tensor:
    """(T, 5) of valid tokens."""
    return torch.tensor([log_ratio, coefficient, advantage, lag, [1.0] * len(lag)]).T


def example() -> Tensor:
    """Ten tokens of lags 0..9, shuffled: new is lag 0; old is lags 5..9."""
    lag = [7, 0, 3, 9, 1, 5, 8, 2, 6, 4]
    log_ratio = [0.1 * x * (-1) ** x for x in lag]  # 0, -0.1, 0.2, ..., -0.9
    coefficient = [0.0 if x == 9 else 0.0005 if x == 8 else 1.0 if x < 5 else 0.5 for x in lag]
    advantage = [2.0 if x >= 5 else -1.0 for x in lag]
    return pack(log_ratio, coefficient, advantage, [float(x) for x in lag])


def test_values_by_hand() -> None:
    metrics = {name.removeprefix("staleness/"): value for name, value in staleness_metrics(example()).items()}
    # Sorted: -.9 -.7 -.5 -.3 -.1 0 .2 .4 .6 .8; the median is the fifth of ten.
    assert metrics["log_ratio_p01"] == pytest.approx(-0.9)
    assert metrics["log_ratio_p05"] == pytest.approx(-0.9)
    assert metrics["log_ratio_p50"] == pytest.approx(-0.1)
    assert metrics["log_ratio_p95"] == pytest.approx(0.8)
    assert metrics["p95_abs_log_ratio"] == pytest.approx(0.9)
    assert metrics["p95_abs_log_ratio_new"] == 0
    assert metrics["p95_abs_log_ratio_old"] == pytest.approx(0.9)
    # Coefficients: five of 1, three of 0.5, one of 0.0005, one of 0.
    assert metrics["weight_mean"] == pytest.approx(6.5005 / 10)
    assert metrics["weight_mean_new"] == 1
    assert metrics["weight_mean_old"] == pytest.approx(1.5005 / 5)
    assert metrics["effective_sample_size"] == pytest.approx(6.5005**2 / (10 * (5.75 + 0.0005**2)))
    assert metrics["effective_sample_size_new"] == 1
    assert metrics["effective_sample_size_old"] == pytest.approx(1.5005**2 / (5 * (0.75 + 0.0005**2)))
    assert metrics["zero_fraction"] == pytest.approx(0.1)
    assert metrics["zero_fraction_new"] == 0
    assert metrics["zero_fraction_old"] == pytest.approx(0.2)
    assert metrics["damped_fraction"] == pytest.approx(0.2)
    assert metrics["damped_fraction_new"] == 0
    assert metrics["damped_fraction_old"] == pytest.approx(0.4)
    # |u A|: old 2 (3 * 0.5 + 0.0005) = 3.001, young 5.
    assert metrics["gradient_share_old"] == pytest.approx(3.001 / 8.001)
    assert metrics["approximate_kl_new"] == 0
    old_ratios = [-0.5, 0.6, -0.7, 0.8, -0.9]
    assert metrics["approximate_kl_old"] == pytest.approx(
        sum(math.exp(x) - 1 - x for x in old_ratios) / 5, rel=1e-6
    )
    assert metrics["lag_mean"] == 4.5
    assert metrics["lag_p95"] == 9
    assert metrics["lag_max"] == 9
    assert metrics["fraction_new"] == pytest.approx(0.1)
    assert metrics["fraction_old"] == pytest.approx(0.5)
    # Fifths: lags 0 1, 2 3, 4 5, 6 7, 8 9.
    assert [metrics[f"lag_p{q}"] for q in range(10, 100, 10)] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert [metrics[f"lag_mean_age{age}"] for age in range(1, 6)] == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert [metrics[f"zero_fraction_age{age}"] for age in range(1, 6)] == [0, 0, 0, 0, 0.5]
    assert [metrics[f"damped_fraction_age{age}"] for age in range(1, 6)] == [0, 0, 0, 0, 1]
    assert metrics["p95_abs_log_ratio_age2"] == pytest.approx(0.3)


def test_metric_names_are_the_documented_ones() -> None:
    base = ["p95_abs_log_ratio", "approximate_kl", "weight_mean", "effective_sample_size"]
    base += ["zero_fraction", "damped_fraction"]
    expected = {f"{name}{suffix}" for name in base for suffix in ("", "_new", "_old")}
    expected |= {f"log_ratio_p{q}" for q in ("01", "05", "50", "95", "99")}
    expected |= {f"lag_p{q}" for q in range(10, 100, 10)}
    expected |= {
        f"{name}_age{age}"
        for name in ("zero_fraction", "damped_fraction", "p95_abs_log_ratio", "lag_mean")
        for age in range(1, 6)
    }
    expected |= {"gradient_share_old", "lag_mean", "lag_p95", "lag_max", "fraction_new", "fraction_old"}
    assert set(staleness_metrics(example())) == {f"staleness/{name}" for name in expected}


def test_tied_lags_stay_together() -> None:
    # Lags 0 0 0 1 1 1 1 1 1 2: the youngest tenth is all of lag 0, the oldest half all of lags 1 and 2.
    lags = [0.0] * 3 + [1.0] * 6 + [2.0]
    metrics = staleness_metrics(pack([0.0] * 10, [1.0] * 10, [1.0] * 10, lags))
    assert metrics["staleness/fraction_new"] == pytest.approx(0.3)
    assert metrics["staleness/fraction_old"] == pytest.approx(0.7)
    # Fifths end at lags 0, 1, 1, 1: two of them are empty.
    assert [age for age in range(1, 6) if f"staleness/lag_mean_age{age}" in metrics] == [1, 2, 5]


def test_equal_lags_make_both_subsets_the_whole() -> None:
    packed = example()
    packed[:, 3] = 4.0
    metrics = staleness_metrics(packed)
    assert metrics["staleness/fraction_new"] == metrics["staleness/fraction_old"] == 1
    assert metrics["staleness/gradient_share_old"] == 1
    for name in ("weight_mean", "zero_fraction", "p95_abs_log_ratio", "effective_sample_size"):
        value = metrics[f"staleness/{name}"]
        assert metrics[f"staleness/{name}_new"] == metrics[f"staleness/{name}_old"] == value


def test_degenerate_updates() -> None:
    assert staleness_metrics(torch.zeros(0, 5)) == {}
    assert staleness_metrics(torch.zeros(3, 5)) == {}  # padding only
    assert StalenessDiagnostics().compute() == {}
    metrics = staleness_metrics(pack([9.0], [0.0], [1.0], [3.0]))
    assert metrics["staleness/effective_sample_size"] == 0
    assert metrics["staleness/gradient_share_old"] == 0
    huge = staleness_metrics(pack([80.0, -80.0], [1e26, 1e-38], [1.0, 1.0], [0.0, 1.0]))
    assert all(math.isfinite(value) for value in huge.values())
    assert huge["staleness/effective_sample_size"] == pytest.approx(0.5)


def test_quantiles_and_effective_sample_size() -> None:
    tenths = np.arange(1.0, 11.0)
    assert quantiles(tenths, (0.0, 0.1, 0.11, 0.5, 0.95, 1.0)) == [1, 1, 2, 5, 10, 10]
    assert quantiles(np.array([3.0]), (0.01, 0.99)) == [3, 3]
    assert quantiles(np.arange(1.0, 101.0), (0.55, 0.07, 0.29)) == [55, 7, 29]  # products that round up
    assert effective_sample_size(np.array([1.0, 1.0, 1.0, 0.0])) == 0.75
    assert effective_sample_size(np.array([1e-200, 1e-200])) == 1


def update(seed: int, transitions: int = 24) -> tuple[ObjectiveOutput, Tensor, Tensor, Tensor]:
    """Output, advantages, lags and mask of an update with padding in it."""
    generator = torch.Generator().manual_seed(seed)
    log_probs, behaviour = torch.randn(2, transitions, 2, 3, generator=generator)
    advantages = torch.randn(transitions, generator=generator)
    lags = torch.randint(0, 9, (transitions,), generator=generator)
    mask = torch.rand(transitions, 2, 3, generator=generator) < 0.8
    objective = GipoSettings(sigma=0.3) if seed % 2 else PpoSettings()
    return objective_loss(log_probs, behaviour, advantages, mask, objective), advantages, lags, mask


@settings(derandomize=True, deadline=None, max_examples=30)
@given(seed=st.integers(0, 10), cuts=st.sets(st.integers(1, 23), max_size=5), ranks=st.integers(1, 3))
def test_metrics_depend_on_neither_micro_batches_nor_ranks(seed: int, cuts: set[int], ranks: int) -> None:
    output, advantages, lags, mask = update(seed)
    whole = StalenessDiagnostics()
    whole.add(output, advantages, lags, mask)
    expected = whole.compute()

    collectors = [StalenessDiagnostics() for _ in range(ranks)]
    edges = [0, *sorted(cuts), 24]
    for i, (start, stop) in enumerate(itertools.pairwise(edges)):
        part = slice(start, stop)
        cut_output = ObjectiveOutput(*(tensor[part] for tensor in output))
        collectors[i % ranks].add(cut_output, advantages[part], lags[part], mask[part])
    gathered = torch.cat([collector.packed() for collector in reversed(collectors)])
    assert len(gathered) == mask.numel()  # padding is kept, so that ranks have equal shapes
    assert staleness_metrics(gathered) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_padding_does_not_count() -> None:
    output, advantages, lags, mask = update(1)
    diagnostics = StalenessDiagnostics()
    diagnostics.add(output, advantages, lags, mask)
    valid = pack(
        output.log_ratio[mask].tolist(),
        output.coefficient[mask].tolist(),
        advantages.view(-1, 1, 1).expand(mask.shape)[mask].tolist(),
        lags.view(-1, 1, 1).expand(mask.shape)[mask].tolist(),
    )
    assert diagnostics.compute() == staleness_metrics(valid)


def test_reset_forgets() -> None:
    output, advantages, lags, mask = update(1)
    diagnostics = StalenessDiagnostics()
    diagnostics.add(output, advantages, lags, mask)
    first = diagnostics.compute()
    diagnostics.add(output, advantages * 3, lags + 5, mask)
    assert diagnostics.compute() != first
    diagnostics.reset()
    diagnostics.add(output, advantages, lags, mask)
    assert diagnostics.compute() == first
