"""Play held-out episodes on borrowed workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from gipo_vla.policies.base import Policy
from gipo_vla.rollout.episodes import EpisodePlan
from gipo_vla.rollout.pool import WorkerPool


@dataclass
class EpisodeResult:
    """One finished evaluation episode; the return is unscaled."""

    plan: EpisodePlan
    episode_return: float = 0.0
    env_steps: int = 0
    success_once: bool = False
    success_at_end: bool = False
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    """Executed actions, (N, A) when joined: with the plan, all that a video needs."""


def play(
    policy: Policy,
    pool: WorkerPool,
    plans: Sequence[EpisodePlan],
    device: torch.device,
    temperature: float,
    greedy: bool,
    generator: torch.Generator,
) -> list[EpisodeResult]:
    """Results of ``plans``, in their order. The pool is afterwards as it was before."""
    results: dict[EpisodePlan, EpisodeResult] = {}
    while missing := [plan for plan in plans if plan not in results]:  # a second round after a lost worker
        _play_round(policy, pool, missing, results, device, temperature, greedy, generator)
    return [results[plan] for plan in plans]


def _play_round(
    policy: Policy,
    pool: WorkerPool,
    plans: Sequence[EpisodePlan],
    results: dict[EpisodePlan, EpisodeResult],
    device: torch.device,
    temperature: float,
    greedy: bool,
    generator: torch.Generator,
) -> None:
    queue = deque(plans)
    idle = replace(plans[0], episode=-2)
    names = tuple(pool.spec.observation)

    with pool.borrowed(lambda _: queue.popleft() if queue else idle):
        pool.begin([queue.popleft() if queue else idle for _ in range(pool.envs)])
        current = {slot: EpisodeResult(plan) for slot, plan in enumerate(pool.plans) if plan is not idle}
        while current:
            active = np.array(sorted(current), np.int64)
            pool.arrays["active"][:] = False
            pool.arrays["active"][active] = True
            observations = {
                name: torch.from_numpy(pool.arrays[f"observation/{name}"][active]).to(device)
                for name in names
            }
            tokens = policy.act(observations, temperature, generator, greedy).tokens
            pool.dispatch(policy.decode(tokens).cpu().numpy(), active)
            arrival = pool.wait()
            for slot in arrival.slots.tolist():
                if _add(pool, slot, current[slot]):
                    finished = current.pop(slot)
                    results[finished.plan] = finished
                    if pool.plans[slot] is not idle:
                        current[slot] = EpisodeResult(pool.plans[slot])
            for slot in arrival.lost.tolist():
                current.pop(slot, None)
                if pool.plans[slot] is not idle:
                    current[slot] = EpisodeResult(pool.plans[slot])


def _add(pool: WorkerPool, slot: int, result: EpisodeResult) -> bool:
    """Add what a chunk led to; whether the episode is over."""
    arrays = pool.arrays
    executed = int(arrays["executed"][slot])
    result.actions.append(arrays["actions"][slot, :executed].copy())
    result.episode_return += float(arrays["rewards"][slot].sum())
    result.env_steps += executed * pool.spec.action_repeat
    result.success_once |= bool(arrays["success"][slot].any())
    result.success_at_end = bool(arrays["success_at_end"][slot])
    return bool(arrays["terminated"][slot] or arrays["truncated"][slot])
