"""Env steps a second of the worker pool beside the simulator's own ``step``, as ratios within one run."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np
import torch

from gipo_vla.assembly import build_policy, environment_spec, rollout_environment
from gipo_vla.benchmarks import Options
from gipo_vla.distributed.group import choose_device
from gipo_vla.replay import samplers
from gipo_vla.replay.ring import SegmentRing
from gipo_vla.rollout.actor import Actor
from gipo_vla.rollout.episodes import TrainingEpisodes
from gipo_vla.rollout.pool import WorkerPool
from gipo_vla.run.plan import plan_collection
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.console import figures_table

REPLAY_BYTES = 8 << 30


def run(settings: TrainingSettings, options: Options) -> dict[str, Any]:
    """Measure everything in turn, ``options.repeats`` times; returns medians, and medians of the ratios of
    each round."""
    torch.set_num_threads(settings.learner.threads)
    device = choose_device(settings.learner.device)
    rollout, spec = settings.rollout, environment_spec(settings)
    policy = build_policy(settings, spec, device)
    plans = plan_collection(settings, spec, 1, device)
    spec = plans.spec
    # What there is to compare with depends on whether the simulator draws in every step that it makes.
    draws = "images" in spec.observation and settings.env.family.startswith("libero_")
    rates: dict[str, list[float]] = {name: [] for name in ("bare", "pool", "rollout", *["naive"] * draws)}
    episodes = TrainingEpisodes(spec, settings.seed, rollout.workers * rollout.envs_per_worker)
    with WorkerPool(
        rollout_environment(settings),
        spec,
        rollout.workers,
        rollout.envs_per_worker,
        policy.chunk,
        episodes.following,
    ) as pool:
        # The actor of a training run that never trains.
        generator = torch.Generator(device).manual_seed(0)
        first = episodes.first(range(pool.envs))
        actor = Actor(policy, pool, first, plans.layout, rollout.temperature, generator, device)
        replay = SegmentRing(plans.layout, settings.replay.capacity, REPLAY_BYTES, samplers.uniform)
        for _ in range(options.repeats):
            if draws:
                rates["naive"].append(sum(pool.bare_step_rates(options.seconds)))
            rates["bare"].append(sum(pool.bare_step_rates(options.seconds, policy.chunk)))
            rates["pool"].append(_pool_rate(pool, options.seconds))
            rates["rollout"].append(_rollout_rate(actor, replay, rollout.collect == "ready", options.seconds))
    _show(rates, spec.tasks[0], rollout.workers, pool.envs, policy.chunk)
    return {
        "task": spec.tasks[0],
        "workers": rollout.workers,
        "envs": pool.envs,
        "chunk": policy.chunk,
        "repeats": options.repeats,
        **{f"{name}_env_steps_per_second": round(median(measured), 1) for name, measured in rates.items()},
        **{f"{name}_ratio": _ratio(rates, name, "bare") for name in ("pool", "rollout")},
        **{
            f"{name}_to_naive_ratio": _ratio(rates, name, "naive")
            for name in rates
            if draws and name != "naive"
        },
    }


def _ratio(rates: dict[str, list[float]], name: str, other: str) -> float:
    return round(median(own / its for own, its in zip(rates[name], rates[other])), 3)


def _show(rates: dict[str, list[float]], task: str, workers: int, envs: int, chunk: int) -> None:
    drawn = f", drawn once in {chunk}" if "naive" in rates else ""
    meanings = {
        "bare": f"the simulator's own step{drawn}, without resets",
        "pool": "worker pool, resets included",
        "rollout": "with policy, segments, replay",
        "naive": "the simulator's own step, two cameras drawn in each, without resets",
    }
    medians = {name: median(measured) for name, measured in rates.items()}
    figures_table(
        f"rollout: {task}, {workers} workers, {envs} environments",
        ["env steps a second", "a core", "beside the bare loop"],
        [
            (meanings[name], f"{own:,.1f}", f"{own / workers:,.1f}", f"{_ratio(rates, name, 'bare'):.2f}")
            for name, own in medians.items()
        ],
    )


def _pool_rate(pool: WorkerPool, seconds: float) -> float:
    """Return env steps a second with random actions, drawn beforehand."""
    shape = (64, *pool.arrays["actions"].shape)
    actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    steps, rounds, began = 0, 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        pool.dispatch(actions[rounds % len(actions)])
        arrival = pool.wait()
        steps += int(pool.arrays["executed"][arrival.slots].sum()) * pool.spec.action_repeat
        rounds += 1
    return steps / (time.perf_counter() - began)


def _rollout_rate(actor: Actor, replay: SegmentRing, ready: bool, seconds: float) -> float:
    """Return env steps a second of acting and storing."""
    before, began = actor.env_steps, time.perf_counter()
    while time.perf_counter() - began < seconds:
        actor.advance(ready)
        for segment in actor.take_segments():
            replay.add(segment)
    actor.finish()
    return (actor.env_steps - before) / (time.perf_counter() - began)
