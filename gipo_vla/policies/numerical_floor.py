"""How far two forwards with the same weights differ: the numerical floor of every log-ratio.

The behaviour policy acts and the learner evaluates: two module trees, of which the training engine has had
one in its hands. They also cut observations into batches of different sizes, and kernels round differently
for each. So log rho is not exactly 0 where nothing is stale. Whatever lies at or below this floor says
nothing about staleness: in float32 it is about 1e-6, in bfloat16 orders of magnitude more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gipo_vla.policies.base import Observations, Policy


@torch.no_grad()
def log_ratio_floor(
    behaviour: Policy, policy: Policy, observations: Observations, micro_batch: int, temperature: float
) -> Tensor:
    """|log rho| float32 (B * K * D,) of every token: acted by one policy on the whole batch of B
    observations, evaluated by the other in micro-batches.

    Draws from a generator of its own, so that measuring changes nothing else.

    Args:
        behaviour: a twin of ``policy`` into which its weights have just been copied.
        micro_batch: samples in one forward of ``evaluate``; what the batch does not fill is repeated.
    """
    device = observations["task"].device
    decision = behaviour.act(observations, temperature, torch.Generator(device).manual_seed(0))
    batch = len(decision.tokens)
    rows = torch.arange(-(-batch // micro_batch) * micro_batch, device=device) % batch
    temperatures = torch.full((micro_batch,), temperature, device=device)
    parts = [
        policy.evaluate(
            {name: value[own] for name, value in observations.items()}, decision.tokens[own], temperatures
        ).log_probs
        for own in rows.split(micro_batch)
    ]
    return (torch.cat(parts)[:batch] - decision.log_probs).abs().flatten()


def floor_metrics(floor: Tensor) -> dict[str, float]:
    """Mean, 99th and 99.9th percentile and maximum of |log rho| (T,)."""
    values = floor.double()
    return {
        "mean": float(values.mean()),
        "p99": float(values.quantile(0.99)),
        "p999": float(values.quantile(0.999)),
        "max": float(values.max()),
    }
