"""How fast a training run is on this machine, and how much memory it takes.

The measured pipeline is that of the run, with its workers, replay, learner and behaviour twin; weights may be
random. In turn are timed the learner alone, on batches drawn from the replay, collecting alone, and whole
iterations, in which the two share the machine; at last the copy of the trained tensors to the twin. The
memory that was used is put beside what ``gipo_vla.run.plan`` planned.
"""

from __future__ import annotations

import os
from statistics import median
from typing import Any

import torch

from gipo_envs import gl, needs_opengl
from gipo_vla.assembly import build_policy, environment_spec
from gipo_vla.benchmarks import Options
from gipo_vla.benchmarks.timing import device_name, timed
from gipo_vla.distributed import group
from gipo_vla.distributed.determinism import deterministic
from gipo_vla.pipeline import Pipeline
from gipo_vla.run.allocator import keep_freed_memory
from gipo_vla.run.memory import RankMemory, machine_limits, measure_memory
from gipo_vla.run.plan import plan_run
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.console import console, figures_table

GIB = 2**30
SYNCHRONIZATIONS = 20


def run(settings: TrainingSettings, options: Options) -> dict[str, Any]:
    """Make a run's iterations and measure them: ``options.rounds`` whole iterations, and as many times the
    updates of an iteration alone and its vector steps alone; one more of each warms up.

    Raises:
        UserError: settings and machine do not go together, as in training.
    """
    torch.set_num_threads(settings.learner.threads)
    spec = environment_spec(settings)
    if needs_opengl(settings.env):
        gl.choose()
    device = group.choose_device(settings.learner.device)
    keep_freed_memory(device)
    with deterministic(settings.learner.deterministic, device), group.joined(device):
        plan, limits = plan_run(settings, spec, group.world_size(), device), machine_limits(device)
        plan.refuse(limits)
        assert plan.collection is not None
        if group.rank() == 0:
            console.print(plan.memory_table(limits))
        policy = build_policy(settings, spec, device, reinforced=True)
        pipeline = Pipeline(settings, policy, plan.collection, device)
        try:
            figures = _measure(settings, pipeline, plan.memory, options.rounds)
        finally:
            pipeline.close()
        if group.rank() == 0:
            _show(figures)
    return figures


def _measure(
    settings: TrainingSettings, pipeline: Pipeline, memory: RankMemory, rounds: int
) -> dict[str, Any]:
    """Return the figures of rank 0; rates are over all ranks. A sample is a transition: one decision."""
    device, updates = pipeline.device, settings.learner.updates
    pipeline.run_iteration()  # fills the replay, compiles and allocates
    pipeline.actor.finish()
    _updates_alone(pipeline, updates)
    learning, collecting, together = [], [], []
    steps = decisions = 0
    for _ in range(rounds):
        samples, seconds = timed(lambda: _updates_alone(pipeline, updates), device)
        learning.append(seconds)
        pipeline.synchronize()
        collecting.append(timed(lambda: _collecting_alone(pipeline), device)[1])
        steps -= pipeline.actor.env_steps
        decisions -= pipeline.actor.decisions
        together.append(timed(pipeline.run_iteration, device)[1])
        pipeline.actor.finish()
        steps += pipeline.actor.env_steps
        decisions += pipeline.actor.decisions
    seconds = sum(together)
    copies = [timed(pipeline.synchronize, device)[1] for _ in range(SYNCHRONIZATIONS)]
    world = group.world_size()
    used = measure_memory(device, pipeline.pool.process_ids)
    held = pipeline.replay.held(copy=False).bytes
    on_gpu = device.type == "cuda"
    rows = list(zip(learning, collecting, together))
    assert isinstance(pipeline.policy, torch.nn.Module)
    trained = [p for p in pipeline.policy.parameters() if p.requires_grad]
    # CUDA's own libraries are in no allocator's count.
    planned = memory.policy.total - memory.policy.overhead if on_gpu else None
    return {
        "device": device_name(device),
        "ranks": world,
        "task": pipeline.plans.spec.tasks[0],
        "updates_timed": rounds * updates,
        "samples_per_update": samples / updates,
        # Updates alone: forward, backward, reduction, optimiser step.
        "learner_samples_per_second": samples / median(learning),
        # End to end: while the simulators step and the twin acts.
        "samples_per_second": rounds * samples / seconds,
        "env_steps_per_second": world * steps / seconds,
        "decisions_per_second": world * decisions / seconds,
        # Simulators, acting and replay alone.
        "collecting_env_steps_per_second": world * steps / rounds / median(collecting),
        # End to end beside the two in turn, and beside what cores without a moment's idleness allow.
        "share_of_turns": median((one + other) / both for one, other, both in rows),
        "share_of_separate": None
        if on_gpu
        else median(_allowed(settings, one, other) / both for one, other, both in rows),
        # Copying the trained tensors to the behaviour twin.
        "synchronize_seconds": median(copies),
        "synchronized_bytes": sum(p.numel() * p.element_size() for p in trained),
        "device_bytes": used["device_bytes"],
        "device_bytes_planned": planned,
        # On a CPU this process holds the policy too.
        "process_bytes": used["process_bytes"],
        "process_bytes_planned": memory.resident - memory.replay + held,
        # Of all workers of a rank, without what they share.
        "worker_bytes": used["worker_bytes"] or 0,
        "worker_bytes_planned": memory.workers,
        "numerical_floor": pipeline.numerical_floor or {},
    }


def _updates_alone(pipeline: Pipeline, count: int) -> int:
    """Updates on batches from the replay, nothing else; returns their samples over all ranks."""
    learner, samples = pipeline.learner, 0
    for _ in range(count):
        segments = pipeline.replay.sample(learner.segments_per_rank, pipeline.replay_rng, learner.version)
        update = learner.begin(segments, pipeline.iteration + 1)
        for micro_batch in range(learner.micro_batches):
            learner.micro_step(update, micro_batch)
        learner.end(update)
        samples += int(update.counts[0])
    return samples


def _collecting_alone(pipeline: Pipeline) -> None:
    """The vector steps of an iteration, into the replay, and nothing else."""
    pipeline._advance(pipeline.plans.steps)
    pipeline.actor.finish()
    pipeline._insert()


def _allowed(settings: TrainingSettings, learning: float, collecting: float) -> float:
    """Seconds that an iteration takes at least on the cores of one rank, from what its two parts take alone.

    Neither is faster than it is alone, and together they need the core seconds of both: the learner's on its
    threads, and those of the workers on a core each (where cores are fewer: on all of them).
    """
    cores = max(1, (os.cpu_count() or 1) // group.world_size())
    if hasattr(os, "sched_getaffinity"):
        cores = max(1, min(cores, len(os.sched_getaffinity(0)) // group.world_size()))
    busy = collecting * min(settings.rollout.workers, cores)
    return max(learning, collecting, (busy + learning * min(settings.learner.threads, cores)) / cores)


def _beside(figures: dict[str, Any]) -> str:
    turns = f"{figures['share_of_turns']:.2f} of the two in turn"
    share = figures["share_of_separate"]
    return turns if share is None else f"{turns}, {share:.2f} of what the cores allow"


def _show(figures: dict[str, Any]) -> None:
    alone, whole = figures["learner_samples_per_second"], figures["samples_per_second"]
    env_steps, decisions = figures["env_steps_per_second"], figures["decisions_per_second"]
    per_update, floor = figures["samples_per_update"], figures["numerical_floor"]
    milliseconds, copied = 1e3 * figures["synchronize_seconds"], figures["synchronized_bytes"] / 2**20
    rows = [
        ("learner alone", f"{alone:,.1f} samples a second, {alone / per_update:,.2f} updates"),
        ("end to end", f"{whole:,.1f} samples a second, {whole / per_update:,.2f} updates"),
        ("collected meanwhile", f"{env_steps:,.1f} env steps a second, {decisions:,.1f} decisions"),
        ("collecting alone", f"{figures['collecting_env_steps_per_second']:,.1f} env steps a second"),
        ("end to end beside", _beside(figures)),
        ("copying to the twin", f"{milliseconds:,.2f} ms for {copied:,.1f} MiB"),
        ("numerical floor", f"|log rho| mean {floor['mean']:.1e}, max {floor['max']:.1e}"),
    ]
    memory = [
        (name, f"{used / GIB:.2f} GiB", f"{planned / GIB:.2f} GiB")
        for name, key in (("GPU memory", "device"), ("process", "process"), ("workers", "worker"))
        if (used := figures[f"{key}_bytes"]) is not None
        and (planned := figures[f"{key}_bytes_planned"]) is not None
    ]
    title = f"training: {figures['task']}, {figures['ranks']} rank(s) on {figures['device']}"
    figures_table(title, ["measured", "planned"], [*rows, *memory])
