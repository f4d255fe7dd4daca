"""What a training run's speed and memory are on this machine: ``python -m gipo_vla.benchmark training``.

The run's own pipeline, with its workers, replay, learner and behaviour twin, on weights that may be random.
The learner is timed alone, on batches drawn from the replay; then whole iterations, in which collection and
updates share the machine; then the copy of the trained tensors to the twin. What was used is put beside what
``gipo_vla.run.plan`` planned.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from gipo_envs import gl, needs_opengl, recorded
from gipo_vla.assembly import build_policy, environment_spec
from gipo_vla.config import Config
from gipo_vla.distributed import group
from gipo_vla.pipeline import Pipeline
from gipo_vla.rollout.episodes import TrainingEpisodes
from gipo_vla.rollout.pool import WorkerPool
from gipo_vla.run.measured import measure_memory
from gipo_vla.run.memory import RankMemory, machine_limits
from gipo_vla.run.plan import plan_run
from gipo_vla.telemetry.console import console

GIB = 2**30
SYNCHRONIZATIONS = 20


@dataclass(frozen=True)
class TrainingBenchmark:
    """Figures of rank 0; rates are over all ranks. A sample is a transition: one decision."""

    device: str
    ranks: int
    task: str
    updates_timed: int
    """In the learner alone, and again in whole iterations."""
    samples_per_update: float
    learner_samples_per_second: float
    """Updates alone: forward, backward, reduction, optimiser step."""
    samples_per_second: float
    """End to end: of updates, while the simulators step and the twin acts."""
    env_steps_per_second: float
    decisions_per_second: float
    synchronize_seconds: float
    """Median of copying the trained tensors to the behaviour twin."""
    synchronized_bytes: int
    device_bytes: int | None
    """Peak allocated on the GPU; None on a CPU."""
    device_bytes_planned: int | None
    process_bytes: int
    """Largest resident set of the training process, which on a CPU holds the policy."""
    process_bytes_planned: int
    worker_bytes: int
    """Of all workers of a rank, without what they share."""
    worker_bytes_planned: int
    numerical_floor: dict[str, float]
    """See ``policies.numerical_floor``."""


def benchmark_training(settings: Config, rounds: int) -> TrainingBenchmark:
    """Make a run's iterations and measure them.

    Args:
        rounds: iterations timed, and as many times the iteration's updates for the learner alone; one more of
            each warms up.

    Raises:
        UserError: settings and machine do not go together, as in training.
    """
    torch.set_num_threads(settings.learner.threads)
    spec = environment_spec(settings)
    if needs_opengl(settings.env):
        gl.choose()
    device = group.choose_device(settings.learner.device)
    with group.joined(device):
        plan, limits = plan_run(settings, spec, group.world_size(), device), machine_limits(device)
        plan.refuse(limits)
        assert plan.collection is not None
        if group.rank() == 0:
            console.print(plan.memory_table(limits))
        policy = build_policy(settings, spec, device, reinforced=True)
        pipeline = Pipeline(settings, policy, plan.collection, device)
        try:
            return _measure(settings, pipeline, plan.memory, rounds)
        finally:
            pipeline.close()


def _measure(settings: Config, pipeline: Pipeline, memory: RankMemory, rounds: int) -> TrainingBenchmark:
    device, updates = pipeline.device, settings.learner.updates
    pipeline.run_iteration()  # fills the replay, compiles and allocates
    pipeline.actor.finish()
    learner_rates = []
    for _ in range(rounds):
        samples, seconds = _timed(lambda: _updates_alone(pipeline, updates), device)
        learner_rates.append(samples / seconds)
    pipeline.synchronize()
    steps_before, decisions_before = pipeline.actor.env_steps, pipeline.actor.decisions
    _, seconds = _timed(lambda: [pipeline.run_iteration() for _ in range(rounds)], device)
    copies = [_timed(pipeline.synchronize, device)[1] for _ in range(SYNCHRONIZATIONS)]
    world = group.world_size()
    used = measure_memory(device, pipeline.pool.process_ids)
    held = pipeline.replay.held(copy=False).bytes
    on_gpu = device.type == "cuda"
    assert isinstance(pipeline.policy, torch.nn.Module)
    trained = [p for p in pipeline.policy.parameters() if p.requires_grad]
    # CUDA's own libraries are in no allocator's count.
    planned = memory.policy.total - memory.policy.overhead if on_gpu else None
    return TrainingBenchmark(
        device=torch.cuda.get_device_name(device) if on_gpu else "cpu",
        ranks=world,
        task=pipeline.plans.spec.tasks[0],
        updates_timed=rounds * updates,
        samples_per_update=samples / updates,
        learner_samples_per_second=statistics.median(learner_rates),
        samples_per_second=rounds * samples / seconds,
        env_steps_per_second=world * (pipeline.actor.env_steps - steps_before) / seconds,
        decisions_per_second=world * (pipeline.actor.decisions - decisions_before) / seconds,
        synchronize_seconds=statistics.median(copies),
        synchronized_bytes=sum(p.numel() * p.element_size() for p in trained),
        device_bytes=used.device_bytes,
        device_bytes_planned=planned,
        process_bytes=used.process_bytes,
        process_bytes_planned=memory.resident - memory.replay + held,
        worker_bytes=used.worker_bytes or 0,
        worker_bytes_planned=memory.workers,
        numerical_floor=pipeline.numerical_floor or {},
    )


def _updates_alone(pipeline: Pipeline, count: int) -> int:
    """Updates on batches from the replay, nothing else; returns their samples over all ranks."""
    learner, samples = pipeline.learner, 0
    for _ in range(count):
        segments = pipeline.replay.sample(learner.segments_per_rank, pipeline.replay_rng, learner.version)
        update = learner.begin(segments, pipeline.iteration + 1)
        for micro_batch in range(learner.micro_batches):
            learner.micro_step(update, micro_batch)
        learner.end(update)
        samples += update.transitions
    return samples


def _timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What a call returns, and the seconds until the device has done it."""
    _wait_for(device)
    began = time.perf_counter()
    result = call()
    _wait_for(device)
    return result, time.perf_counter() - began


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def print_figures(figures: TrainingBenchmark) -> None:
    """The figures for people, on stderr."""
    table = Table(title=f"training: {figures.task}, {figures.ranks} rank(s) on {figures.device}")
    for name in ("", "measured", "planned"):
        table.add_column(name, justify="right" if name else "left")
    per_update = figures.samples_per_update
    for name, rate in (
        ("learner alone", figures.learner_samples_per_second),
        ("end to end", figures.samples_per_second),
    ):
        table.add_row(name, f"{rate:,.1f} samples a second, {rate / per_update:,.2f} updates", "")
    env_steps, decisions = figures.env_steps_per_second, figures.decisions_per_second
    table.add_row(
        "collected meanwhile", f"{env_steps:,.1f} env steps a second, {decisions:,.1f} decisions", ""
    )
    copied = f"{1e3 * figures.synchronize_seconds:,.2f} ms for {figures.synchronized_bytes / 2**20:,.1f} MiB"
    table.add_row("copying to the twin", copied, "")
    values = asdict(figures)
    for name, key in (("GPU memory", "device"), ("process", "process"), ("workers", "worker")):
        used, planned = values[f"{key}_bytes"], values[f"{key}_bytes_planned"]
        if used is not None and planned is not None:
            table.add_row(name, f"{used / GIB:.2f} GiB", f"{planned / GIB:.2f} GiB")
    floor = figures.numerical_floor
    table.add_row("numerical floor", f"|log rho| mean {floor['mean']:.1e}, max {floor['max']:.1e}", "")
    console.print(table)


def record(settings: Config, folder: Path, frames: int) -> dict[str, Any]:
    """Record what an environment shows under random actions, for ``env=recorded``.

    Raises:
        UserError: the environment cannot be made here.
    """
    spec = environment_spec(settings)
    if needs_opengl(settings.env):
        gl.choose()
    rollout, chunk = settings.rollout, settings.policy.chunk
    episodes = TrainingEpisodes(spec, settings.seed, rollout.workers * rollout.envs_per_worker)
    rng = np.random.default_rng(settings.seed)
    seen: dict[str, list[np.ndarray]] = {name: [] for name in spec.observation if name != "task"}
    with WorkerPool(
        settings.env, spec, rollout.workers, rollout.envs_per_worker, chunk, episodes.following
    ) as pool:
        pool.begin(episodes.first(range(pool.envs)))
        while sum(map(len, next(iter(seen.values())))) < frames:
            for name, parts in seen.items():
                parts.append(pool.arrays[f"observation/{name}"].copy())
            pool.dispatch(rng.uniform(-1, 1, pool.arrays["actions"].shape).astype(np.float32))
            pool.wait()
    arrays = {name: np.concatenate(parts)[:frames] for name, parts in seen.items()}
    recorded.write(folder, spec, arrays)
    size = sum(array.nbytes for array in arrays.values())
    console.print(f"{frames} observations, {size / 2**20:.1f} MiB, are in {folder}", soft_wrap=True)
    return {"benchmark": "record", "folder": str(folder), "frames": frames, "bytes": size}
