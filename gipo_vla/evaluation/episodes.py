"""Play held-out episodes on borrowed workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from gipo_envs import EnvironmentSpec
from gipo_vla.distributed import group
from gipo_vla.policies.base import Policy
from gipo_vla.rollout.episodes import EpisodePlan, Role, evaluation_plans, integer_seed
from gipo_vla.rollout.pool import WorkerPool
from gipo_vla.settings.runs import RunSettings


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


@contextmanager
def simulators(settings: RunSettings, spec: EnvironmentSpec, chunk: int) -> Iterator[WorkerPool]:
    """Workers of a run's environment, for evaluation alone."""
    rollout = settings.rollout
    shape = rollout.workers, rollout.envs_per_worker, chunk
    with WorkerPool(settings.env, spec, *shape, lambda plan: plan, rollout.worker_timeout_s) as pool:
        pool.begin([evaluation_plans(spec, 1)[0]] * pool.envs)
        pool.retired = True
        yield pool


def play(
    settings: RunSettings,
    policy: Policy,
    pool: WorkerPool,
    plans: Sequence[EpisodePlan],
    device: torch.device,
    mode: str,
) -> list[EpisodeResult]:
    """Results of ``plans``, in their order, in a mode (``greedy`` or ``sampled``), with the temperature and
    the random draws of a run. The pool is afterwards as it was before."""
    generator = torch.Generator(device)
    generator.manual_seed(integer_seed(settings.seed, Role.EVALUATION, group.rank()))
    temperature, greedy = settings.rollout.temperature, mode == "greedy"

    def act(slots: NDArray[np.int64]) -> NDArray[np.float32]:
        observations = {
            name: torch.from_numpy(pool.arrays[f"observation/{name}"][slots]).to(device)
            for name in pool.spec.observation
        }
        tokens = policy.act(observations, temperature, generator, greedy).tokens
        actions: NDArray[np.float32] = policy.decode(tokens).cpu().numpy()
        return actions

    results: dict[EpisodePlan, EpisodeResult] = {}
    while missing := [plan for plan in plans if plan not in results]:  # a second round after a lost worker
        results |= _play_round(act, pool, missing)
    return [results[plan] for plan in plans]


def _play_round(
    act: Callable[[NDArray[np.int64]], NDArray[np.float32]], pool: WorkerPool, plans: Sequence[EpisodePlan]
) -> dict[EpisodePlan, EpisodeResult]:
    """Results of the plans whose worker was not lost. Args: act: actions for some slots of the pool."""
    results: dict[EpisodePlan, EpisodeResult] = {}
    queue, idle = deque(plans), replace(plans[0], episode=-2)
    with pool.borrowed(lambda _: queue.popleft() if queue else idle):
        pool.begin([queue.popleft() if queue else idle for _ in range(pool.envs)])
        current = {slot: EpisodeResult(plan) for slot, plan in enumerate(pool.plans) if plan is not idle}
        while current:
            active = np.array(sorted(current), np.int64)
            pool.arrays["active"][:] = False
            pool.arrays["active"][active] = True
            pool.dispatch(act(active), active)
            arrival = pool.wait()
            over = arrival.lost.tolist()
            for slot in arrival.slots.tolist():
                if _add(pool, slot, current[slot]):
                    results[current[slot].plan] = current[slot]
                    over.append(slot)
            for slot in over:
                current.pop(slot, None)
                if pool.plans[slot] is not idle:
                    current[slot] = EpisodeResult(pool.plans[slot])
    return results


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
