"""Measure this installation: ``python -m gipo_vla.benchmark rollout [overrides]``.

    rollout     env steps a second of the worker pool, alone and with policy, segmenting and replay, beside
                the simulator's own step in as many processes; as ratios within one run
    repeats=5 seconds=3 are the defaults: so many rounds of each measurement in turn, so many seconds each

Prints a table for people and one line of JSON on stdout.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from rich.table import Table

from gipo_envs.errors import UserError, nearest
from gipo_vla import cli, config
from gipo_vla.config import Config
from gipo_vla.distributed.group import choose_device
from gipo_vla.pipeline import build_policy, environment_spec, plan
from gipo_vla.policies.base import Policy
from gipo_vla.replay import samplers
from gipo_vla.replay.ring import SegmentRing
from gipo_vla.rollout.actor import Actor
from gipo_vla.rollout.episodes import TrainingEpisodes
from gipo_vla.rollout.pool import WorkerPool
from gipo_vla.telemetry.console import console


def main(arguments: Sequence[str]) -> int:
    overrides = cli.handle_common_flags(arguments, "train", __doc__ or "")
    if overrides is None:
        return 0
    benchmarks: dict[str, Callable[[Config, int, float], dict[str, Any]]] = {"rollout": rollout}
    names = [text for text in overrides if "=" not in text]
    if len(names) != 1 or names[0] not in benchmarks:
        given = names[0] if names else ""
        raise UserError(f"which benchmark? {given!r} is none; {nearest(given, benchmarks)}")
    own = dict(text.split("=", 1) for text in overrides if text.split("=")[0] in ("repeats", "seconds"))
    rest = [text for text in overrides if "=" in text and text.split("=")[0] not in own]
    try:
        repeats, seconds = int(own.get("repeats", 5)), float(own.get("seconds", 3))
    except ValueError:
        raise UserError(f"repeats and seconds are numbers, not {own}") from None
    print(json.dumps(benchmarks[names[0]](config.load("train", rest), repeats, seconds)))
    return 0


def rollout(settings: Config, repeats: int, seconds: float) -> dict[str, Any]:
    """Three measurements in turn, ``repeats`` times; medians, and medians of the ratios round by round."""
    torch.set_num_threads(settings.learner.threads)
    spec = environment_spec(settings)
    device = choose_device(settings.learner.device)
    policy = build_policy(settings, spec, device)
    plans = plan(settings, policy, spec, 1)
    episodes = TrainingEpisodes(
        spec, settings.seed, settings.rollout.workers * settings.rollout.envs_per_worker
    )
    with WorkerPool(
        settings.env,
        spec,
        settings.rollout.workers,
        settings.rollout.envs_per_worker,
        policy.chunk,
        episodes.following,
    ) as pool:
        collect = _Collection(settings, pool, policy, plans.layout, episodes, device)
        rows = []
        for _ in range(repeats):
            bare = sum(pool.bare_step_rates(seconds))
            rows.append((bare, _pool_rate(pool, seconds), collect.rate(seconds)))
    bare, alone, full = (statistics.median(column) for column in zip(*rows))
    result = {
        "benchmark": "rollout",
        "task": spec.tasks[0],
        "workers": settings.rollout.workers,
        "envs": pool.envs,
        "repeats": repeats,
        "bare_env_steps_per_second": round(bare),
        "pool_env_steps_per_second": round(alone),
        "rollout_env_steps_per_second": round(full),
        "pool_ratio": round(statistics.median(row[1] / row[0] for row in rows), 3),
        "rollout_ratio": round(statistics.median(row[2] / row[0] for row in rows), 3),
    }
    table = Table(
        title=f"rollout: {spec.tasks[0]}, {settings.rollout.workers} workers, {pool.envs} environments"
    )
    for name in ("", "env steps a second", "beside the bare loop"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("the simulator's own step, resets not counted", f"{bare:,.0f}", "1.00")
    table.add_row("worker pool, resets included", f"{alone:,.0f}", f"{result['pool_ratio']:.2f}")
    table.add_row("with policy, segments, replay", f"{full:,.0f}", f"{result['rollout_ratio']:.2f}")
    console.print(table)
    return result


def _pool_rate(pool: WorkerPool, seconds: float) -> float:
    """Env steps a second with random actions, drawn beforehand."""
    rng = np.random.default_rng(0)
    shape = (64, *pool.arrays["actions"].shape)
    actions = rng.uniform(-1, 1, shape).astype(np.float32)
    steps, round_number, began = 0, 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        pool.dispatch(actions[round_number % len(actions)])
        arrival = pool.wait()
        steps += int(pool.arrays["executed"][arrival.slots].sum()) * pool.spec.action_repeat
        round_number += 1
    return steps / (time.perf_counter() - began)


class _Collection:
    """The actor of a training run that never trains."""

    def __init__(
        self,
        settings: Config,
        pool: WorkerPool,
        policy: Policy,
        layout: Any,
        episodes: TrainingEpisodes,
        device: torch.device,
    ) -> None:
        self.ready = settings.rollout.collect == "ready"
        self.replay = SegmentRing(layout, settings.replay.capacity, 8 << 30, samplers.uniform)
        generator = torch.Generator(device).manual_seed(0)
        first = episodes.first(range(pool.envs))
        self.actor = Actor(policy, pool, first, layout, settings.rollout.temperature, generator, device)

    def rate(self, seconds: float) -> float:
        before, began = self.actor.env_steps, time.perf_counter()
        while time.perf_counter() - began < seconds:
            self.actor.advance(self.ready)
            for segment in self.actor.take_segments():
                self.replay.add(segment)
        self.actor.finish()
        return (self.actor.env_steps - before) / (time.perf_counter() - began)


if __name__ == "__main__":
    cli.run(main)
