"""The gradient of an update computed by loops, to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gipo_vla.learner.learner import Learner
from gipo_vla.replay.segment import SegmentBatch

VALUE_NAMES = {"critic.0.weight", "critic.0.bias", "value_head.weight", "value_head.bias"}

NO_CLIPPING = {"policy_gradient_clip": 1e9, "value_gradient_clip": 1e9}


def gradients(learner: Learner) -> dict[str, torch.Tensor]:
    """Gradients of the first update, as Adam's first moment remembers them."""
    assert learner.version == 1
    tensors = learner.optimizer_tensors()
    return {
        name.removeprefix("exp_avg/"): tensor / (1 - learner.settings.adam_beta1)
        for name, tensor in tensors.items()
        if name.startswith("exp_avg/")
    }


def naive_gradients(
    policy: Any,
    batch: SegmentBatch,
    gamma: float,
    lam: float,
    scale: float,
    vtrace: bool = False,
    value_scale: float = 1.0,
) -> dict[str, Any]:
    """The same gradient from loops over segments, transitions and tokens: No-Clip, Huber, GAE; with V-trace
    what a transition hands back is weighted by min(1, the product of the ratios of its executed tokens)."""
    loss, _ = naive_loss(policy, batch, gamma, lam, scale, vtrace, value_scale)
    names, parameters = zip(*policy.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, parameters)))


def naive_loss(
    policy: Any,
    batch: SegmentBatch,
    gamma: float,
    lam: float,
    scale: float,
    vtrace: bool = False,
    value_scale: float = 1.0,
) -> tuple[torch.Tensor, list[float]]:
    """The loss of ``naive_gradients``, and the value targets."""
    policy_terms, value_terms, targets, tokens, transitions = [], [], [], 0, 0
    for n in range(len(batch.length)):
        length = int(batch.length[n])
        # One row more than there are transitions: the observation that follows (its token does not matter).
        tokens_taken = batch.tokens[n].astype(np.int64)[[*range(length), 0]]
        out = policy.evaluate(
            {"state": torch.from_numpy(batch.observations["state"][n][: length + 1])},
            torch.from_numpy(tokens_taken),
            torch.full((length + 1,), 1.6),
        )
        values = [value_scale * value for value in out.values.tolist()]
        after = 0.0 if batch.terminated[n] else values[length]
        carry = 0.0
        for t in reversed(range(length)):
            executed = int(batch.executed[n, t])
            reward = sum(gamma**i * scale * float(batch.rewards[n, t, i]) for i in range(executed))
            delta = reward + gamma**executed * after - values[t]
            advantage = delta + gamma**executed * lam * carry
            weight = 1.0
            for token, behaviour in zip(
                out.log_probs[t, :executed].flatten().tolist(), batch.log_probs[n, t, :executed].flatten()
            ):
                weight *= np.exp(token - float(behaviour))
            carry = advantage * min(1.0, weight) if vtrace else advantage
            after = values[t]
            targets.append(values[t] + carry)
            error = (out.values[t] - targets[-1] / value_scale).abs()
            value_terms.append(0.5 * error**2 if error.item() <= 1 else error - 0.5)
            for i in range(executed):
                for d in range(2):
                    log_ratio = out.log_probs[t, i, d] - float(batch.log_probs[n, t, i, d])
                    policy_terms.append(-torch.exp(log_ratio) * advantage)
                    tokens += 1
            transitions += 1
    return sum(policy_terms) / tokens + sum(value_terms) / transitions, targets


def assert_close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], rtol: float) -> None:
    assert first.keys() == second.keys()
    for name in first:
        scale = float(second[name].abs().max())
        torch.testing.assert_close(
            first[name], second[name], rtol=0, atol=rtol * max(scale, 1e-6), msg=lambda m, n=name: f"{n}: {m}"
        )
