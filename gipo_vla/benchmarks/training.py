"""How fast a training run is on this machine, and how much memory it takes.

The measured pipeline is that of the run, with its workers, replay, learner and behaviour twin; weights may be
random. In turn are timed the learner alone, on batches drawn from the replay, collecting alone, and whole
iterations, in which the two share the machine; at last the copy of the trained tensors to the twin. The
memory that was used is put beside what ``gipo_vla.run.plan`` planned.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
from gipo_vla.run.memory import RankMemory, machine_limits, measure_memory, with_micro_batch
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
    with prepared(settings) as (pipeline, memory):
        figures = _measure(settings, pipeline, memory, options.rounds)
        if group.rank() == 0:
            _show(figures)
    return figures


@contextmanager
def prepared(settings: TrainingSettings) -> Iterator[tuple[Pipeline, RankMemory]]:
    """A run's pipeline before its first iteration, and the memory that is planned for a rank.

    Raises:
        UserError: see ``run``.
    """
    torch.set_num_threads(settings.learner.threads)
    spec = environment_spec(settings)
    if needs_opengl(settings.env):
        gl.choose()
    device = group.choose_device(settings.learner.device)
    keep_freed_memory(device)
    with deterministic(settings.learner.deterministic, device), group.joined(device):
        world, limits = group.world_size(), machine_limits(device)
        settings = with_micro_batch(settings, spec, world, device, limits.device)
        plan = plan_run(settings, spec, world, device)
        plan.refuse(limits)
        assert plan.collection is not None
        if group.rank() == 0:
            console.print(plan.memory_table(limits))
        policy = build_policy(settings, spec, device, reinforced=True)
        pipeline = Pipeline(settings, policy, plan.collection, device)
        try:
            yield pipeline, plan.memory
        finally:
            pipeline.close()


def _measure(
    settings: TrainingSettings, pipeline: Pipeline, memory: RankMemory, rounds: int
) -> dict[str, Any]:
    """Return the figures of rank 0; rates are over all ranks. A sample is a transition: one decision."""
    device, updates = pipeline.device, settings.learner.updates
    pipeline.run_iteration()  # fills the replay, compiles and allocates
    pipeline.actor.finish()
    _updates_alone(pipeline, updates)
    learning, collecting, whole = [], [], []
    for _ in range(rounds):
        samples, seconds = timed(lambda: _updates_alone(pipeline, updates), device)
        learning.append(seconds)
        pipeline.synchronize()
        collecting.append(_collecting_alone(pipeline))
        whole.append(whole_iterations(pipeline, 1, samples))
    turns = [
        (one, other["seconds"], samples / both["samples_per_second"])
        for one, other, both in zip(learning, collecting, whole)
    ]
    return {
        "device": device_name(device),
        "ranks": group.world_size(),
        "task": pipeline.plans.spec.tasks[0],
        "updates_timed": rounds * updates,
        "samples_per_update": samples / updates,
        # Updates alone: forward, backward, reduction, optimiser step.
        "learner_samples_per_second": samples / median(learning),
        # Simulators, acting and replay alone.
        "collecting_env_steps_per_second": median(one["env_steps_per_second"] for one in collecting),
        **{name: median(one[name] for one in whole) for name in whole[0]},
        # End to end beside the two in turn, and beside what cores without a moment's idleness allow.
        "share_of_turns": median((one + other) / both for one, other, both in turns),
        "share_of_separate": None
        if device.type == "cuda"
        else median(_allowed(settings, one, other) / both for one, other, both in turns),
        **copies_to_the_twin(pipeline),
        **used_and_planned(pipeline, memory),
        "numerical_floor": pipeline.numerical_floor or {},
    }


def whole_iterations(pipeline: Pipeline, rounds: int, samples: int) -> dict[str, float]:
    """Rates end to end, while the simulators step and the twin acts.

    Args:
        samples: that an iteration trains on, over all ranks.
    """
    world, actor = group.world_size(), pipeline.actor
    steps, decisions = actor.env_steps, actor.decisions
    _, seconds = timed(lambda: [pipeline.run_iteration() for _ in range(rounds)], pipeline.device)
    actor.finish()
    return {
        "samples_per_second": rounds * samples / seconds,
        "env_steps_per_second": world * (actor.env_steps - steps) / seconds,
        "decisions_per_second": world * (actor.decisions - decisions) / seconds,
    }


def copies_to_the_twin(pipeline: Pipeline) -> dict[str, float]:
    """How long the copy of the trained tensors to the behaviour twin takes, and what it copies."""
    assert isinstance(pipeline.policy, torch.nn.Module)
    copies = [timed(pipeline.synchronize, pipeline.device)[1] for _ in range(SYNCHRONIZATIONS)]
    trained = [p for p in pipeline.policy.parameters() if p.requires_grad]
    return {
        "synchronize_seconds": median(copies),
        "synchronized_bytes": sum(p.numel() * p.element_size() for p in trained),
    }


def used_and_planned(pipeline: Pipeline, memory: RankMemory) -> dict[str, int | None]:
    """The memory of the run so far beside its plan."""
    device = pipeline.device
    used = measure_memory(device, pipeline.pool.process_ids)
    held = pipeline.replay.held(copy=False).bytes
    # CUDA's own libraries are in no allocator's count.
    planned = memory.policy.total - memory.policy.overhead if device.type == "cuda" else None
    return {
        "device_bytes": used["device_bytes"],
        "device_bytes_planned": planned,
        # On a CPU this process holds the policy too.
        "process_bytes": used["process_bytes"],
        "process_bytes_planned": memory.resident - memory.replay + held,
        # Of all workers of a rank, without what they share.
        "worker_bytes": used["worker_bytes"] or 0,
        "worker_bytes_planned": memory.workers,
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


def _collecting_alone(pipeline: Pipeline) -> dict[str, float]:
    """The vector steps of an iteration, into the replay, and nothing else."""
    before = pipeline.actor.env_steps
    _, seconds = timed(lambda: pipeline.collect(pipeline.plans.steps), pipeline.device)
    steps = group.world_size() * (pipeline.actor.env_steps - before)
    return {"seconds": seconds, "env_steps_per_second": steps / seconds}


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
