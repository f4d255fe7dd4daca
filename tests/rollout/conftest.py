"""Pools of point_reach workers, which cannot outlive their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import torch

from gipo_envs import EnvironmentSettings, make_spec
from gipo_vla.policies.mlp import MlpPolicy, MlpSettings
from gipo_vla.replay.segment import layout
from gipo_vla.rollout.actor import Actor
from gipo_vla.rollout.episodes import TrainingEpisodes
from gipo_vla.rollout.groups import EpisodeGroups
from gipo_vla.rollout.pool import WorkerPool

MakePool = Callable[..., WorkerPool]
MakeActor = Callable[..., Actor]


@pytest.fixture
def make_pool() -> Iterator[MakePool]:
    """``make_pool(workers=2, envs_per_worker=2, chunk=1, timeout=60, seed=0, group_size=1, stagger=False,
    **environment settings)``: a pool with training episodes, not yet begun; the episodes are its attribute
    ``episodes``."""
    pools: list[WorkerPool] = []

    def make(
        workers: int = 2,
        envs_per_worker: int = 2,
        chunk: int = 1,
        timeout: float = 60.0,
        seed: int = 0,
        group_size: int = 1,
        stagger: bool = False,
        **settings: Any,
    ) -> WorkerPool:
        environment = EnvironmentSettings(**{"family": "point_reach", "task": "reach"} | settings)
        spec = make_spec(environment)
        episodes = TrainingEpisodes(spec, seed, workers * envs_per_worker, group_size, stagger)
        pool = WorkerPool(environment, spec, workers, envs_per_worker, chunk, episodes.following, timeout)
        pool.episodes = episodes  # type: ignore[attr-defined]
        pools.append(pool)
        return pool

    yield make
    pids = [pid for pool in pools for pid in pool.process_ids]
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    for pool in pools:
        pool.close()
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not alive, "a worker outlived its pool"


@pytest.fixture
def make_actor(make_pool: MakePool) -> MakeActor:
    """``make_actor(length=5, seed=0, temperature=1.0, on_group=None, ..., **arguments of make_pool)``."""

    def make(
        length: int = 5,
        seed: int = 0,
        temperature: float = 1.0,
        store_values: bool = False,
        store_logits: bool = False,
        on_group: Any = None,
        group_size: int = 1,
        **arguments: Any,
    ) -> Actor:
        pool = make_pool(seed=seed, group_size=group_size, **arguments)
        torch.manual_seed(0)
        policy = MlpPolicy(MlpSettings(hidden=(16,), bins=16, chunk=pool.chunk), pool.spec)
        fields = layout(pool.spec, length, pool.chunk, policy.action_dims, policy.bins, store_logits)
        first = pool.episodes.first(range(pool.envs))  # type: ignore[attr-defined]
        generator = torch.Generator().manual_seed(seed)
        return Actor(
            policy,
            pool,
            first,
            fields,
            temperature,
            generator,
            torch.device("cpu"),
            store_values,
            EpisodeGroups(on_group, group_size),
        )

    return make
