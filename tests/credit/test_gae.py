"""GAE over chunks: by hand, against naive references, and V-trace against its definition."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gipo_envs.errors import UserError
from gipo_vla.credit import CreditBatch, Gae, GaeSettings
from gipo_vla.credit.gae import chunk_returns
from gipo_vla.settings.registry import credits

HALVES = GaeSettings(gamma=0.5, gae_lambda=0.5)


def test_both_endings_by_hand() -> None:
    """Two segments with the same two transitions and one padded slot; K = 2, gamma = lambda = 1/2.

    Transition 0: rewards 1, 2, both executed:   R = 1 + 2/2 = 2; next weighted by (1/2)^2 = 1/4; V = 1.
    Transition 1: reward 4, one executed (99 is  R = 4;           next weighted by  1/2;          V = 2.
    not):

    Ended by the task: delta_1 = 4 + 0 - 2 = 2;                    A_1 = 2.
                       delta_0 = 2 + 1/4 * 2 - 1 = 3/2;            A_0 = 3/2 + 1/4 * 1/2 * 2 = 7/4.
    Cut, bootstrap 8:  delta_1 = 4 + 1/2 * 8 - 2 = 6;              A_1 = 6.
                       delta_0 = 3/2 as before;                    A_0 = 3/2 + 1/8 * 6 = 9/4.
    """
    nan = torch.nan
    batch = CreditBatch(
        rewards=torch.tensor([[[1.0, 2.0], [4.0, 99.0], [nan, nan]]] * 2),
        executed=torch.tensor([[2, 1, 2]] * 2),
        mask=torch.tensor([[True, True, False]] * 2),
        terminated=torch.tensor([True, False]),
        values=torch.tensor([[1.0, 2.0, nan]] * 2),
        bootstrap_values=torch.tensor([8.0, 8.0]),
    )
    output = Gae(HALVES).on_batch(batch)
    assert output.value_targets is not None
    assert output.advantages.tolist() == [[1.75, 2.0, 0.0], [2.25, 6.0, 0.0]]
    assert output.value_targets.tolist() == [[2.75, 4.0, 0.0], [3.25, 8.0, 0.0]]


def test_a_step_limit_ends_the_task_where_it_is_to() -> None:
    """Three segments alike: ended by the task, by the step limit, and cut; V = 2, R = 4, bootstrap 8."""
    batch = CreditBatch(
        rewards=torch.full((3, 1, 1), 4.0),
        executed=torch.ones(3, 1, dtype=torch.int64),
        mask=torch.ones(3, 1, dtype=torch.bool),
        terminated=torch.tensor([True, False, False]),
        truncated=torch.tensor([False, True, False]),
        values=torch.full((3, 1), 2.0),
        bootstrap_values=torch.full((3,), 8.0),
    )
    assert Gae(HALVES).on_batch(batch).advantages.flatten().tolist() == [2, 6, 6]
    older = Gae(replace(HALVES, step_limit="terminal"))
    assert older.on_batch(batch).advantages.flatten().tolist() == [2, 2, 6]
    with pytest.raises(ValueError, match="truncated"):
        older.on_batch(replace(batch, truncated=None))


def test_chunk_returns_by_hand() -> None:
    rewards = torch.tensor([[1.0, 10.0, 100.0]] * 3)
    returns = chunk_returns(rewards, torch.tensor([1, 2, 3]), 0.1)
    torch.testing.assert_close(returns, torch.tensor([1.0, 2.0, 3.0]))


def random_batch(seed: int, chunk: int = 3) -> CreditBatch:
    """Five segments of up to six transitions; NaN wherever nothing may be read."""
    generator = torch.Generator().manual_seed(seed)
    segments, length = 5, 6
    lengths = torch.randint(1, length + 1, (segments,), generator=generator)
    mask = torch.arange(length) < lengths[:, None]
    # Only the last transition of a segment can be cut short.
    last = torch.arange(length) == lengths[:, None] - 1
    executed = torch.where(last, torch.randint(1, chunk + 1, (segments, 1), generator=generator), chunk)
    read = mask.unsqueeze(-1) & (torch.arange(chunk) < executed.unsqueeze(-1))
    rewards = torch.randn(segments, length, chunk, generator=generator)
    terminated = torch.rand(segments, generator=generator) < 0.5
    values, log_ratios = torch.randn(2, segments, length, generator=generator)
    bootstrap = torch.randn(segments, generator=generator)
    return CreditBatch(
        rewards=torch.where(read, rewards, torch.nan),
        executed=executed,
        mask=mask,
        terminated=terminated,
        values=torch.where(mask, values, torch.nan),
        bootstrap_values=torch.where(terminated, torch.nan, bootstrap),
        log_ratios=torch.where(mask, log_ratios, torch.nan),
    )


def rows(batch: CreditBatch, gamma: float) -> list[list[tuple[float, float, float, float, float]]]:
    """Per segment its valid transitions in plain numbers: R, gamma^n, V, V after, log-ratio."""
    assert batch.values is not None
    assert batch.bootstrap_values is not None
    assert batch.log_ratios is not None
    segments = []
    for i in range(len(batch.mask)):
        length = int(batch.mask[i].sum())
        values = batch.values[i, :length].tolist()
        values.append(0.0 if batch.terminated[i] else float(batch.bootstrap_values[i]))
        segment = []
        for t in range(length):
            n = int(batch.executed[i, t])
            reward = sum(gamma**j * float(batch.rewards[i, t, j]) for j in range(n))
            segment.append((reward, gamma**n, values[t], values[t + 1], float(batch.log_ratios[i, t])))
        segments.append(segment)
    return segments


def compare(actual: Tensor | None, expected: list[list[float]], mask: Tensor) -> None:
    assert actual is not None
    assert (actual[~mask] == 0).all()
    for i, row in enumerate(expected):
        torch.testing.assert_close(actual[i, : len(row)], torch.tensor(row), rtol=1e-4, atol=1e-5)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0, 1), gae_lambda=st.floats(0, 1))
def test_against_the_definition_as_a_sum(seed: int, gamma: float, gae_lambda: float) -> None:
    batch = random_batch(seed)
    output = Gae(GaeSettings(gamma=gamma, gae_lambda=gae_lambda)).on_batch(batch)
    advantages, targets = [], []
    for segment in rows(batch, gamma):
        row = []
        for t in range(len(segment)):
            total, weight = 0.0, 1.0
            for reward, discount, value, after, _ in segment[t:]:
                total += weight * (reward + discount * after - value)
                weight *= discount * gae_lambda
            row.append(total)
        advantages.append(row)
        targets.append([a + transition[2] for a, transition in zip(row, segment)])
    compare(output.advantages, advantages, batch.mask)
    compare(output.value_targets, targets, batch.mask)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0, 1))
def test_lambda_one_targets_are_discounted_returns_step_by_step(seed: int, gamma: float) -> None:
    """Knows nothing of chunks: one list of env-step rewards, discounted one by one, then the bootstrap."""
    batch = random_batch(seed)
    assert batch.bootstrap_values is not None
    output = Gae(GaeSettings(gamma=gamma, gae_lambda=1.0)).on_batch(batch)
    expected = []
    for i in range(len(batch.mask)):
        row = []
        length = int(batch.mask[i].sum())
        for t in range(length):
            steps = [
                float(batch.rewards[i, s, j]) for s in range(t, length) for j in range(batch.executed[i, s])
            ]
            value = 0.0 if batch.terminated[i] else float(batch.bootstrap_values[i])
            for reward in reversed(steps):
                value = reward + gamma * value
            row.append(value)
        expected.append(row)
    compare(output.value_targets, expected, batch.mask)


def test_single_steps_are_textbook_gae() -> None:
    batch = random_batch(5, chunk=1)
    gamma, gae_lambda = 0.97, 0.9
    output = Gae(GaeSettings(gamma=gamma, gae_lambda=gae_lambda)).on_batch(batch)
    expected = []
    for segment in rows(batch, gamma):
        advantage, row = 0.0, []
        for reward, _, value, after, _ in reversed(segment):
            advantage = reward + gamma * after - value + gamma * gae_lambda * advantage
            row.append(advantage)
        expected.append(row[::-1])
    compare(output.advantages, expected, batch.mask)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), gae_lambda=st.floats(0, 1))
def test_vtrace_is_its_definition_as_a_sum(seed: int, gae_lambda: float) -> None:
    """IMPALA, equation 1: v_s = V_s + sum over t of discounts * (c_s ... c_(t-1)) * rho_t * delta_t."""
    gamma = 0.9
    batch = random_batch(seed)
    vtrace = Gae(GaeSettings(gamma=gamma, gae_lambda=gae_lambda, importance_correction="vtrace"))
    output = vtrace.on_batch(batch)
    targets, advantages = [], []
    for segment in rows(batch, gamma):
        row = []
        for s in range(len(segment)):
            total, weight = segment[s][2], 1.0
            for reward, discount, value, after, log_ratio in segment[s:]:
                rho = min(1.0, math.exp(log_ratio))
                total += weight * rho * (reward + discount * after - value)
                weight *= discount * gae_lambda * rho
            row.append(total)
        targets.append(row)
        # The decision's own advantage: its reward plus what follows, mixed by lambda, uncorrected itself.
        ends = [*row[1:], segment[-1][3]]
        advantages.append(
            [
                reward + discount * (gae_lambda * end + (1 - gae_lambda) * after) - value
                for (reward, discount, value, after, _), end in zip(segment, ends)
            ]
        )
    compare(output.value_targets, targets, batch.mask)
    compare(output.advantages, advantages, batch.mask)


def test_vtrace_on_policy_is_gae_and_off_policy_is_not() -> None:
    batch = random_batch(7)
    vtrace = Gae(replace(HALVES, importance_correction="vtrace"))
    plain = Gae(HALVES).on_batch(batch)
    on_policy = vtrace.on_batch(replace(batch, log_ratios=torch.zeros_like(batch.values)))  # type: ignore[arg-type]
    assert torch.equal(on_policy.advantages, plain.advantages)
    stale = vtrace.on_batch(batch)
    assert not torch.allclose(stale.advantages, plain.advantages, atol=1e-3)
    # A transition that the learner would never make again teaches the value nothing: target = value.
    never = vtrace.on_batch(
        replace(batch, log_ratios=torch.full_like(batch.mask, -200.0, dtype=torch.float32))
    )
    assert never.value_targets is not None
    assert batch.values is not None
    assert torch.equal(never.value_targets[batch.mask], batch.values[batch.mask])


def test_no_gradient_and_low_precision_values() -> None:
    batch = random_batch(3)
    assert batch.values is not None
    with_gradient = replace(batch, values=batch.values.clone().requires_grad_())
    assert not Gae(HALVES).on_batch(with_gradient).advantages.requires_grad
    low = Gae(HALVES).on_batch(replace(batch, values=batch.values.bfloat16()))
    assert low.advantages.dtype == torch.float32


def test_what_is_missing_is_named() -> None:
    batch = random_batch(1)
    with pytest.raises(ValueError, match="needs values and bootstrap_values"):
        Gae(HALVES).on_batch(replace(batch, values=None))
    with pytest.raises(ValueError, match="needs log_ratios"):
        Gae(replace(HALVES, importance_correction="vtrace")).on_batch(replace(batch, log_ratios=None))
    with pytest.raises(TypeError, match="on_batch"):
        HALVES.build().on_group([])
    assert HALVES.build().needs_values
    assert not HALVES.build().needs_groups


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gamma": 1.5}, r"credit\.gamma is 1\.5: it must be between 0 and 1"),
        ({"gamma": float("nan")}, r"credit\.gamma is nan"),
        ({"gae_lambda": -0.1}, r"credit\.gae_lambda is -0\.1: it must be between 0 and 1"),
        ({"values": "old"}, r"credit\.values is 'old': .*'recomputed' or 'stored'"),
        ({"importance_correction": "is"}, r"importance_correction is 'is': .*'none' or 'vtrace'"),
        ({"normalize": "batch"}, r"credit\.normalize is 'batch': .*'running', 'exact' or 'none'"),
    ],
)
def test_bad_settings_are_explained(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        credits.validate({"name": "gae"} | wrong)
