"""Measure this installation: ``python -m gipo_vla.benchmark NAME [overrides]``.

    rollout     env steps a second of the worker pool, alone and with policy, segmenting and replay, beside
                the simulator's own step in as many processes; as ratios within one run. env=libero_spatial:
                beside LIBERO's own environment with cameras drawn once a chunk, and naively in every step
                (repeats=5 seconds=3: so many rounds of the measurements in turn, so many seconds each)
    policy      a vision-language-action network: decisions a second of act, samples a second of evaluate and
                backward, peak memory beside the plan, share of the device's matrix peak, and the numerical
                floor of |log rho| in float32 and bfloat16
                (act_batch=16 micro_batch=8 seconds=3; policy=openvla_oft_7b policy.random_weights=true needs
                no checkpoint)
    training    whole iterations of a run, also under torchrun: samples a second of the learner alone and end
                to end, env steps a second, the copy to the behaviour twin, memory beside the plan (rounds=3
                iterations)
    record      observations of an environment under random actions, for env=recorded env.assets=FOLDER on a
                machine without its simulator (out=FOLDER frames=128)
    credit      milliseconds that each credit takes of an iteration of 64 rollouts x 64 chunks, and its share
                of the wall time of one, measured in the same run (see studies.credit_cost)

Prints a table for people and one line of JSON on stdout.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from rich.table import Table

from gipo_envs.errors import UserError, nearest
from gipo_vla import cli, config, training_benchmark
from gipo_vla.assembly import build_policy, environment_spec, rollout_environment
from gipo_vla.config import Config
from gipo_vla.distributed.group import choose_device, rank
from gipo_vla.policies.base import Policy
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings
from gipo_vla.policies.registry import network_dtype
from gipo_vla.replay import samplers
from gipo_vla.replay.ring import SegmentRing
from gipo_vla.rollout.actor import Actor
from gipo_vla.rollout.episodes import TrainingEpisodes
from gipo_vla.rollout.pool import WorkerPool
from gipo_vla.run.plan import plan_collection
from gipo_vla.telemetry.console import console


def main(arguments: Sequence[str]) -> int:
    overrides = cli.handle_common_flags(arguments, "train", __doc__ or "")
    if overrides is None:
        return 0
    benchmarks: dict[str, Callable[[Config, Options], dict[str, Any]]] = {
        "rollout": rollout,
        "policy": policy,
        "training": training,
        "record": record,
        "credit": credit,
    }
    names = [text for text in overrides if "=" not in text]
    if len(names) != 1 or names[0] not in benchmarks:
        given = names[0] if names else ""
        raise UserError(f"which benchmark? {given!r} is none; {nearest(given, benchmarks)}")
    own: dict[str, str] = {}
    rest = []
    for text in overrides:
        key, separator, value = text.partition("=")
        if key in (field.name for field in fields(Options)):
            own[key] = value
        elif separator:
            rest.append(text)
    try:
        options = Options(out=own.pop("out", ""), **{key: float(value) for key, value in own.items()})
    except ValueError:
        raise UserError(f"{', '.join(own)} are numbers, not {', '.join(own.values())}") from None
    result = benchmarks[names[0]](_settings(rest), options)
    if rank() == 0:
        print(json.dumps(result))
    return 0


def _settings(overrides: list[str]) -> Config:
    """Without an experiment, an environment stands for itself, not for what the default one makes of it."""
    given = dict(text.partition("=")[::2] for text in overrides)
    if "env" not in given or "experiment" in given:
        return config.load("train", overrides)
    defaults = {}
    if given["env"].startswith("libero_"):
        defaults = {"env.task": "0", "rollout.envs_per_worker": "2"}
        if "policy" not in given:  # a small policy that takes the images along and leaves the time to others
            defaults |= {"policy.chunk": "8", "env.observations": "[images,proprio,state]"}
            defaults |= {"replay.segment_length": "8"}
    missing = [f"{key}={value}" for key, value in defaults.items() if key not in given]
    values = OmegaConf.to_container(config.compose_yaml("train", ["~experiment", *missing, *overrides]))
    assert isinstance(values, dict)
    named = {str(key): value for key, value in values.items()}
    return config.from_dict({"experiment": "benchmark", "iterations": 1, **named})


@dataclass(frozen=True)
class Options:
    """The command's own settings."""

    repeats: float = 5
    seconds: float = 3
    act_batch: float = 16
    """Observations in one call of act."""
    micro_batch: float = 8
    """Samples in one forward and backward."""
    rounds: float = 3
    """Iterations."""
    frames: float = 128
    out: str = ""
    """Folder of a recording."""


def training(settings: Config, options: Options) -> dict[str, Any]:
    """See ``gipo_vla.training_benchmark``."""
    figures = training_benchmark.benchmark_training(settings, int(options.rounds))
    if rank() == 0:
        training_benchmark.print_figures(figures)
    return {"benchmark": "training", **asdict(figures)}


def record(settings: Config, options: Options) -> dict[str, Any]:
    """See ``gipo_vla.training_benchmark.record``."""
    if not options.out:
        raise UserError("out is missing: give out=FOLDER for the recording")
    return training_benchmark.record(settings, Path(options.out), int(options.frames))


def policy(settings: Config, options: Options) -> dict[str, Any]:
    """The configured network on random observations; see ``policies.openvla_oft.benchmark``."""
    if not isinstance(settings.policy, OpenVlaOftSettings):
        raise UserError(
            "benchmark policy measures vision-language-action networks: add policy=openvla_oft_tiny"
        )
    from gipo_vla.policies.openvla_oft.benchmark import benchmark_policy, numerical_floor

    torch.set_num_threads(settings.learner.threads)
    device = choose_device(settings.learner.device)
    spec = environment_spec(settings)
    measured: dict[str, Any] = {
        "device": device,
        "act_batch": int(options.act_batch),
        "micro_batch": int(options.micro_batch),
        "temperature": settings.rollout.temperature,
        "action_size": spec.action_size,
        "proprio_size": 8 if settings.policy.proprio else None,
    }
    dtype = network_dtype(settings.learner.precision, device)
    figures = benchmark_policy(settings.policy, dtype=dtype, seconds=options.seconds, **measured)
    # One model after the other: two of seven billion parameters need not fit.
    other = torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
    floors = {str(other).removeprefix("torch."): numerical_floor(settings.policy, dtype=other, **measured)}
    figures = replace(figures, numerical_floor=figures.numerical_floor | floors)
    result = {"benchmark": "policy", **asdict(figures)}
    table = Table(title=f"policy: {figures.parameters:,} parameters, {figures.dtype} on {figures.device}")
    for name in ("", "", "share of the matrix peak"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row(
        f"act, {figures.act_batch} observations",
        f"{figures.decisions_per_second:,.1f} decisions a second",
        f"{figures.act_peak_share:.1%}",
    )
    table.add_row(
        f"evaluate and backward, {figures.micro_batch} samples",
        f"{figures.samples_per_second:,.1f} samples a second",
        f"{figures.train_peak_share:.1%}",
    )
    table.add_row(
        "peak memory" if device.type == "cuda" else "resident memory of the whole process",
        f"{figures.peak_memory_bytes / 2**30:.2f} GiB, planned {figures.planned_memory_bytes / 2**30:.2f}",
        "",
    )
    for name, floor in sorted(figures.numerical_floor.items()):
        table.add_row(
            f"act and evaluate differ, {name}",
            f"|log rho| mean {floor['mean']:.1e}, p99 {floor['p99']:.1e}, p99.9 {floor['p999']:.1e}, "
            f"max {floor['max']:.1e}",
            "",
        )
    console.print(table)
    return result


def rollout(settings: Config, options: Options) -> dict[str, Any]:
    """The measurements in turn, ``repeats`` times; medians, and medians of the ratios round by round."""
    repeats, seconds = int(options.repeats), options.seconds
    torch.set_num_threads(settings.learner.threads)
    spec = environment_spec(settings)
    device = choose_device(settings.learner.device)
    policy = build_policy(settings, spec, device)
    plans = plan_collection(settings, spec, 1)
    episodes = TrainingEpisodes(
        spec, settings.seed, settings.rollout.workers * settings.rollout.envs_per_worker
    )
    spec = plans.spec
    with WorkerPool(
        rollout_environment(settings),
        spec,
        settings.rollout.workers,
        settings.rollout.envs_per_worker,
        policy.chunk,
        episodes.following,
    ) as pool:
        collect = _Collection(settings, pool, policy, plans.layout, episodes, device)
        # What there is to compare with depends on whether the simulator draws for every step it makes.
        draws = "images" in spec.observation and settings.env.family.startswith("libero_")
        rates: dict[str, list[float]] = {
            "bare": [],
            "pool": [],
            "rollout": [],
            **({"naive": []} if draws else {}),
        }
        for _ in range(repeats):
            if draws:
                rates["naive"].append(sum(pool.bare_step_rates(seconds)))
            rates["bare"].append(sum(pool.bare_step_rates(seconds, policy.chunk)))
            rates["pool"].append(_pool_rate(pool, seconds))
            rates["rollout"].append(collect.rate(seconds))
    workers = settings.rollout.workers
    result: dict[str, Any] = {
        "benchmark": "rollout",
        "task": spec.tasks[0],
        "workers": workers,
        "envs": pool.envs,
        "chunk": policy.chunk,
        "repeats": repeats,
    }
    for name, measured in rates.items():
        result[f"{name}_env_steps_per_second"] = round(statistics.median(measured), 1)
    for name in ("pool", "rollout"):
        result[f"{name}_ratio"] = _median_ratio(rates[name], rates["bare"])
    for name in ("bare", "pool", "rollout") if draws else ():
        result[f"{name}_to_naive_ratio"] = _median_ratio(rates[name], rates["naive"])
    table = Table(title=f"rollout: {spec.tasks[0]}, {workers} workers, {pool.envs} environments")
    for name in ("", "env steps a second", "a core", "beside the bare loop"):
        table.add_column(name, justify="left" if not name else "right")
    drawn = f", drawn once in {policy.chunk}" if draws else ""
    lines = {
        "bare": f"the simulator's own step{drawn}, without resets",
        "pool": "worker pool, resets included",
        "rollout": "with policy, segments, replay",
        "naive": "the simulator's own step, two cameras drawn in each, without resets",
    }
    for name, measured in rates.items():
        rate, ratio = statistics.median(measured), _median_ratio(measured, rates["bare"])
        table.add_row(lines[name], f"{rate:,.1f}", f"{rate / workers:,.1f}", f"{ratio:.2f}")
    console.print(table)
    return result


def credit(settings: Config, options: Options) -> dict[str, Any]:
    """What each credit costs, with groups of the usual size and one of all rollouts."""
    from gipo_vla.studies.credit_cost import CHUNKS, GROUPINGS, ROLLOUTS, measure

    torch.set_num_threads(settings.learner.threads)
    cost = measure(settings, int(options.repeats))
    table = Table(
        title=f"credit: {ROLLOUTS} rollouts x {CHUNKS} chunks, beside an iteration of {cost.iteration:.2f} s"
    )
    table.add_column("")
    for grouping in GROUPINGS:
        table.add_column(f"{grouping}, ms", justify="right")
        table.add_column("share", justify="right")
    for name, own in cost.credits.items():
        cells = [(f"{1e3 * own[g]:.1f}", f"{own[g] / cost.iteration:.2%}") for g in GROUPINGS]
        table.add_row(name, *(cell for pair in cells for cell in pair))
    console.print(table)
    return {
        "benchmark": "credit",
        "rollouts": ROLLOUTS,
        "chunks": CHUNKS,
        "repeats": int(options.repeats),
        "iteration_seconds": round(cost.iteration, 3),
        "milliseconds": {
            name: {grouping: round(1e3 * value, 2) for grouping, value in own.items()}
            for name, own in cost.credits.items()
        },
        "share": {
            name: {grouping: round(value / cost.iteration, 5) for grouping, value in own.items()}
            for name, own in cost.credits.items()
        },
    }


def _median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    return round(statistics.median(n / d for n, d in zip(numerators, denominators)), 3)


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
