"""Running statistics against numpy's, in one go."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gipo_vla.policies.normalization import RunningNormalizer, moments


def data(rows: int = 500, size: int = 3) -> torch.Tensor:
    rng = np.random.default_rng(0)
    scale, offset = np.array([1.0, 100.0, 1e-2]), np.array([0.0, 5000.0, -3.0])
    return torch.from_numpy((rng.normal(size=(rows, size)) * scale + offset).astype(np.float32))


def fitted(batches: list[torch.Tensor]) -> RunningNormalizer:
    normalizer = RunningNormalizer(3)
    for batch in batches:
        normalizer.update(*moments(batch))
    return normalizer


def test_is_the_identity_before_any_data() -> None:
    values = data(4)
    assert torch.equal(RunningNormalizer(3)(values), values)


@pytest.mark.parametrize("sizes", [(500,), (1, 499), (100,) * 5, (1,) * 500])
def test_statistics_are_those_of_all_rows(sizes: tuple[int, ...]) -> None:
    rows = data()
    normalizer = fitted(list(rows.split(list(sizes))))
    array = rows.double().numpy()
    assert normalizer.count == 500
    np.testing.assert_allclose(normalizer.mean.numpy(), array.mean(0), rtol=1e-12)
    np.testing.assert_allclose((normalizer.squares / 500).numpy(), array.var(0), rtol=1e-6)
    expected = (array - array.mean(0)) / (array.std(0) + 1e-3)
    np.testing.assert_allclose(normalizer(rows).numpy(), expected.clip(-10, 10), atol=2e-4)


def test_order_does_not_matter() -> None:
    parts = list(data().split([100, 50, 350]))
    first, second = fitted(parts), fitted(parts[::-1])
    torch.testing.assert_close(first.mean, second.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(first.squares, second.squares, rtol=1e-9, atol=0)


def test_moments_of_several_ranks_add_up() -> None:
    parts = list(data().split([200, 300]))
    count, total, squares = (sum(column) for column in zip(*(moments(part) for part in parts)))
    together, apart = RunningNormalizer(3), fitted([data()])
    together.update(count, total, squares)  # type: ignore[arg-type]
    torch.testing.assert_close(together.mean, apart.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(together.squares, apart.squares, rtol=1e-9, atol=0)


def test_nothing_is_learnt_from_no_rows() -> None:
    normalizer = fitted([data()])
    before = normalizer.mean.clone()
    normalizer.update(*moments(torch.empty(0, 3)))
    assert torch.equal(normalizer.mean, before) and normalizer.count == 500


def test_outliers_are_clipped_and_constants_stay_finite() -> None:
    normalizer = fitted([torch.tensor([[1.0, 0.0, 2.0]] * 10)])
    out = normalizer(torch.tensor([[1.0, 1e6, -1e6]]))
    assert out.tolist() == [[0.0, 10.0, -10.0]]


def test_statistics_are_saved_with_the_policy() -> None:
    normalizer, restored = fitted([data()]), RunningNormalizer(3)
    restored.load_state_dict(normalizer.state_dict())
    assert torch.equal(restored(data()), normalizer(data()))
