"""The advantage normaliser: values by hand, independence of the cut, checkpoints."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gipo_envs.errors import UserError
from gipo_vla.credit import (
    AdvantageNormalizer,
    GaeSettings,
    GraphSettings,
    GroupSettings,
    InformationGainSettings,
    advantage_moments,
)


def moments(*values: float) -> Tensor:
    return advantage_moments(torch.tensor(values), torch.ones(len(values), dtype=torch.bool))


def test_moments_by_hand_and_padding() -> None:
    assert moments(1.0, 2.0, 4.0).tolist() == [3.0, 7.0, 21.0]
    mask = torch.tensor([[True, False], [True, False]])
    padded = advantage_moments(torch.tensor([[1.0, torch.nan], [2.0, torch.inf]]), mask)
    assert padded.dtype == torch.float64
    assert padded.tolist() == [2.0, 3.0, 5.0]


def test_exact_normalises_by_the_batch_it_saw_last() -> None:
    normalizer = AdvantageNormalizer("exact")
    normalizer.observe(moments(100.0, 300.0))
    normalizer.observe(moments(1.0, 3.0, 5.0, 7.0))  # mean 4, population variance 5
    actual = normalizer.normalize(torch.tensor([1.0, 3.0, 5.0, 7.0]))
    torch.testing.assert_close(actual, torch.tensor([-3.0, -1.0, 1.0, 3.0]) / math.sqrt(5))


def test_running_by_hand() -> None:
    normalizer = AdvantageNormalizer("running", decay=0.5)
    assert not normalizer.ready
    normalizer.observe(moments(0.0, 4.0))
    assert normalizer.ready
    assert normalizer.mean == 2  # the first batch initialises, without start-up bias
    assert normalizer.std == 2
    normalizer.observe(moments(4.0, 4.0, 4.0))
    # Sums: count 0.5 * 2 + 3 = 4, sum 0.5 * 4 + 12 = 14, squares 0.5 * 16 + 48 = 56.
    assert normalizer.mean == 3.5
    assert normalizer.std == pytest.approx(math.sqrt(14 - 3.5**2))
    actual = normalizer.normalize(torch.tensor([3.5, 3.5 + normalizer.std]))
    torch.testing.assert_close(actual, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("mode", ["running", "exact"])
def test_without_a_shift_zero_stays_zero(mode: str) -> None:
    """Root mean square of 0, 0, 0, 0, -1, 3: sqrt(10 / 6). Their mean is 1/3."""
    normalizer = AdvantageNormalizer(mode, shift=False)  # type: ignore[arg-type]
    values = (0.0, 0.0, 0.0, 0.0, -1.0, 3.0)
    expected = torch.tensor(values) / math.sqrt(10 / 6)
    torch.testing.assert_close(normalizer.normalize(torch.tensor(values), moments(*values)), expected)
    normalizer.observe(moments(*values))
    assert (normalizer.mean, normalizer.std) == (0.0, pytest.approx(math.sqrt(10 / 6)))
    torch.testing.assert_close(normalizer.normalize(torch.tensor(values)), expected)


def test_which_credits_are_shifted() -> None:
    """GAE's advantages are; a group's have a zero that means something."""
    assert GaeSettings().shifts_advantages
    assert not GroupSettings().shifts_advantages
    assert not GraphSettings().shifts_advantages
    assert not InformationGainSettings().shifts_advantages
    assert InformationGainSettings(base="gae").shifts_advantages


def test_running_forgets_at_the_rate_of_its_decay() -> None:
    normalizer = AdvantageNormalizer("running", decay=0.9)
    normalizer.observe(moments(-100.0, 100.0))
    for _ in range(300):
        normalizer.observe(moments(4.0, 6.0))
    assert normalizer.mean == pytest.approx(5)
    assert normalizer.std == pytest.approx(1)


def test_the_first_success_after_silence_is_limited() -> None:
    normalizer = AdvantageNormalizer("running", limit=10.0)
    normalizer.observe(moments(0.0, 0.0, 0.0))
    assert normalizer.normalize(torch.tensor([0.0, 0.9, -0.9])).tolist() == [0.0, 10.0, -10.0]
    exact = AdvantageNormalizer("exact", limit=0.1)
    exact.observe(moments(-1.0, 1.0))
    torch.testing.assert_close(exact.normalize(torch.tensor([-1.0, 1.0])), torch.tensor([-1.0, 1.0]))


def test_none_changes_nothing() -> None:
    normalizer = AdvantageNormalizer("none")
    assert normalizer.ready
    normalizer.observe(moments(1.0, 5.0))
    advantages = torch.tensor([3.0, 1e9])
    assert torch.equal(normalizer.normalize(advantages), advantages)


def test_equal_advantages_become_zero() -> None:
    for value in (0.1, 1e4, -3.3):
        normalizer = AdvantageNormalizer("exact")
        normalizer.observe(moments(*[value] * 7))
        assert normalizer.normalize(torch.full((7,), value)).abs().max() <= 1e-3 * abs(value)


@pytest.mark.parametrize("mode", ["running", "exact"])
def test_normalizing_before_observing_is_refused(mode: str) -> None:
    normalizer = AdvantageNormalizer(mode)  # type: ignore[arg-type]
    normalizer.observe(moments())  # an empty batch says nothing
    with pytest.raises(RuntimeError, match="first batch"):
        normalizer.normalize(torch.zeros(2))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    mode=st.sampled_from(["running", "exact"]),
    seed=st.integers(0, 1000),
    cuts=st.sets(st.integers(1, 31), max_size=6),
)
def test_how_a_batch_is_cut_cannot_be_seen(mode: str, seed: int, cuts: set[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    advantages = 3 * torch.randn(2, 32, 4, generator=generator) + 10
    mask = torch.rand(2, 32, 4, generator=generator) < 0.7
    edges = [0, *sorted(cuts), 32]
    whole = AdvantageNormalizer(mode)  # type: ignore[arg-type]
    parts = AdvantageNormalizer(mode)  # type: ignore[arg-type]
    for batch, valid in zip(advantages, mask):
        whole.observe(advantage_moments(batch, valid))
        pieces = [advantage_moments(batch[a:b], valid[a:b]) for a, b in itertools.pairwise(edges)]
        parts.observe(torch.stack(pieces).sum(0))
    torch.testing.assert_close(whole.normalize(advantages), parts.normalize(advantages), rtol=1e-6, atol=1e-6)
    if mode == "exact":
        normalized = whole.normalize(advantages[1])[mask[1]]
        assert normalized.mean().item() == pytest.approx(0, abs=1e-5)
        assert normalized.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_state_survives_json_to_the_bit() -> None:
    normalizer = AdvantageNormalizer("running", decay=0.9)
    for batch in ((0.1, 0.7, -2.3), (1.9, 0.3)):
        normalizer.observe(moments(*batch))
    restored = AdvantageNormalizer("running", decay=0.9)
    restored.load_state_dict(json.loads(json.dumps(normalizer.state_dict())))
    for each in (normalizer, restored):
        each.observe(moments(0.4, 0.5))
    assert restored.state_dict() == normalizer.state_dict()
    assert (restored.mean, restored.std) == (normalizer.mean, normalizer.std)


def test_unknown_mode_is_explained() -> None:
    with pytest.raises(UserError, match=r"credit\.normalize is batch: it must be running, exact or none"):
        AdvantageNormalizer("batch")  # type: ignore[arg-type]
