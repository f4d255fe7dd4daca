"""The memory of a run, planned before any of it is spent, and refused where it cannot fit.

Two budgets are kept: one rank's device (weights, adapters, optimiser, activations of the chosen micro-batch,
the behaviour twin) and the host (replay, batches, workers, processes), which the ranks of a machine share.
Without a GPU the first is part of the second. What a policy takes is declared by its settings, what a worker
takes by its family.

The plan is of training. Filming the trained policy at the end takes a few hundred megabytes more for a
minute, and a checkpoint that is written in the background takes a copy of the replay where the machine has
room for one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from rich.table import Table

from gipo_envs import EnvironmentSpec
from gipo_envs import registry as families
from gipo_vla.policies.base import network_dtype
from gipo_vla.policies.memory import PolicyMemory, Work
from gipo_vla.replay.segment import SegmentLayout
from gipo_vla.settings.cloning import SftSettings
from gipo_vla.settings.runs import RunSettings
from gipo_vla.settings.schema import TrainingSettings

GIB = 2**30
PROCESS_BYTES = {"cpu": 515_000_000, "cuda": 3_000_000_000}
"""Resident in a training process beside policy and data: interpreter, torch, DeepSpeed and the console
(measured on a CPU), and CUDA's libraries (estimated)."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank."""

    policy: PolicyMemory
    """On the device."""
    micro_batch: int
    """Samples in one forward and backward."""
    replay: int
    """At the end of the run, with full-length segments but the tail of every episode."""
    replay_most: int
    """What the replay may grow to: its memory limit, or every segment one transition long."""
    batches: int
    """Drawn segments on their way to the device, and the open segments and shared memory of the actor."""
    workers: int
    """All simulator processes of the rank."""
    process: int
    """The training process without policy and data."""
    on_host: bool
    """The policy is on the CPU, so its memory is the host's."""
    drawing: int = 0
    """On the device: what the rank's simulators draw with, where they draw with EGL."""

    @property
    def device(self) -> int:
        return self.policy.total + self.drawing

    @property
    def resident(self) -> int:
        """The training process with policy and data."""
        return self.replay + self.batches + self.process + (self.device if self.on_host else 0)

    @property
    def host(self) -> int:
        return self.resident + self.workers


@dataclass(frozen=True)
class ReplayMemory:
    """Bytes and transitions of one rank's replay."""

    per_segment: int
    expected: int
    """With full-length segments but the tail of every episode."""
    most: int
    """What the slots could grow to: the memory limit, or every segment one transition long."""
    slots: int
    transitions: float
    """Held when it is full: the capacity, or what fits into the slots."""


def plan_replay(
    layout: SegmentLayout, capacity: int, memory_limit: int, decisions: int, collected: float = math.inf
) -> ReplayMemory:
    """The replay of one rank.

    Args:
        capacity: transitions.
        memory_limit: bytes.
        decisions: of an episode that lasts to its step limit.
        collected: transitions of the whole run; a short run does not fill its replay.
    """
    per_episode = math.ceil(decisions / layout.length)
    size = layout.bytes_per_segment
    slots = max(1, min(capacity, memory_limit // size))
    transitions = min(capacity, slots * decisions / per_episode)
    segments = math.ceil(min(transitions, collected) * per_episode / decisions)
    return ReplayMemory(size, min(segments, slots) * size, slots * size, slots, transitions)


def plan_memory(
    settings: RunSettings,
    spec: EnvironmentSpec,
    world: int,
    device: torch.device,
    replay: ReplayMemory | None,
) -> RankMemory:
    """The memory of one of ``world`` ranks.

    Args:
        replay: of a training run; None for cloning.
    """
    rollout, learner = settings.rollout, settings.learner
    envs = rollout.workers * rollout.envs_per_worker
    micro_batch, twins, batches = micro_batch_samples(settings, world), 0, 0
    if isinstance(settings, TrainingSettings) and replay is not None:
        # The behaviour policy, and a frozen reference.
        twins = 1 + (settings.regularizers.kl_reference_coefficient > 0)
        drawn, length = settings.learner.batch_segments // world, settings.replay.segment_length
        # A batch as drawn and as tensors; open segments, and observations in shared memory twice.
        batches = 2 * drawn * replay.per_segment
        batches += envs * (replay.per_segment + 2 * replay.per_segment // (length + 1))
    stage = learner.zero_stage
    bfloat16 = network_dtype(learner.precision, device) == torch.bfloat16
    work = Work(
        micro_batch,
        envs,
        "bfloat16" if bfloat16 else "float32",
        ranks=world,
        zero_stage=(1 if device.type == "cpu" else 2) if stage == "auto" else stage,
        cuda=device.type == "cuda",
        twins=twins,
    )
    cost = families.get(settings.env.family).worker_cost
    return RankMemory(
        settings.policy.memory(work, spec),
        micro_batch,
        replay.expected if replay else 0,
        replay.most if replay else 0,
        batches,
        rollout.workers * cost.bytes(spec),
        PROCESS_BYTES[device.type],
        on_host=device.type == "cpu",
        # A rank draws on the GPU that it computes on; on a CPU the workers' host memory has it.
        drawing=rollout.workers * cost.drawing_bytes(spec) * _draws_with_egl(device),
    )


def _draws_with_egl(device: torch.device) -> bool:
    """On a machine with a GPU, unless its user chose another way."""
    return device.type == "cuda" and os.environ.get("MUJOCO_GL", "").strip().lower() in ("", "egl")


def micro_batch_samples(settings: RunSettings, world: int) -> int:
    """Samples in one forward and backward of one of ``world`` ranks."""
    if isinstance(settings, SftSettings):
        return min(settings.sft.micro_batch_size, settings.sft.batch_size // world)
    segments = min(settings.learner.micro_batch_segments, settings.learner.batch_segments // world)
    return segments * settings.replay.segment_length


# ----------------------------------------------------------------------------------------------- machine


@dataclass(frozen=True)
class Limits:
    """Bytes that the machine has."""

    host: int
    """Of the machine, or of the container."""
    device: int | None
    """Of one GPU; None on a CPU."""
    ranks: int = 1
    """Ranks on this machine, which share the host's."""


def machine_limits(device: torch.device, cgroups: Path = Path("/sys/fs/cgroup")) -> Limits:
    """What this machine or container has."""
    host = min(psutil.virtual_memory().total, container_limit(cgroups) or 2**62)
    own = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return Limits(host, own, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def container_limit(
    cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Host memory that a container may use: the least limit of its control groups (version 1 or 2), None
    without one.

    Args:
        cgroups: where control groups are mounted.
        own: this process's control groups.
    """
    paths = [""]
    if own.is_file():
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                # A limit may stand at any level above the process.
                parts = Path(path).parts[1:]
                paths += ["/".join(parts[: count + 1]) for count in range(len(parts))]
    found = []
    for path in dict.fromkeys(paths):
        for file in (cgroups / path / "memory.max", cgroups / "memory" / path / "memory.limit_in_bytes"):
            text = file.read_text().strip() if file.is_file() else "max"
            if text.isdecimal():
                found.append(int(text))
    return min(found, default=None)


def problem(settings: RunSettings, memory: RankMemory, limits: Limits) -> str | None:
    """What does not fit, in one line; None if all does."""
    if limits.device is not None and memory.device > limits.device:
        policy = memory.policy
        return (
            f"a rank needs {gib(memory.device)} of GPU memory and there are {gib(limits.device)} "
            f"(weights {gib(policy.frozen + policy.trainable)}, activations of a micro-batch "
            f"{gib(policy.activations + policy.workspace)}, drawing {gib(memory.drawing)}): "
            f"{_for_the_device(settings, memory, limits.device)}"
        )
    needed = memory.host * limits.ranks
    if needed > limits.host:
        ranks = f"{limits.ranks} ranks need" if limits.ranks > 1 else "the run needs"
        process = "policy and process" if memory.on_host else "process"
        return (
            f"{ranks} {gib(needed)} of host memory and there are {gib(limits.host)} (a rank: replay "
            f"{gib(memory.replay)}, batches {gib(memory.batches)}, workers {gib(memory.workers)}, "
            f"{process} {gib(memory.resident - memory.replay - memory.batches)}): "
            f"{_for_the_host(settings, memory)}"
        )
    return None


def _for_the_device(settings: RunSettings, memory: RankMemory, limit: int) -> str:
    """The setting that helps most."""
    if memory.policy.total <= limit:
        return f"lower rollout.workers ({settings.rollout.workers}), or draw on the CPU with MUJOCO_GL=osmesa"
    bfloat16 = network_dtype(settings.learner.precision, torch.device("cuda")) == torch.bfloat16
    remedy = settings.policy.remedy(memory.policy, "bfloat16" if bfloat16 else "float32")
    return remedy or _smaller_micro_batch(settings)


def _smaller_micro_batch(settings: RunSettings) -> str:
    if isinstance(settings, SftSettings):
        return f"lower sft.micro_batch_size ({settings.sft.micro_batch_size})"
    if settings.learner.micro_batch_segments > 1:
        return f"lower learner.micro_batch_segments ({settings.learner.micro_batch_segments})"
    return f"lower replay.segment_length ({settings.replay.segment_length})"


def _for_the_host(settings: RunSettings, memory: RankMemory) -> str:
    """The setting of the greatest item."""
    items: list[tuple[int, Callable[[], str]]] = [
        (memory.workers, lambda: f"lower rollout.workers ({settings.rollout.workers})"),
        (memory.device * memory.on_host, lambda: _smaller_micro_batch(settings)),
    ]
    if isinstance(settings, TrainingSettings):
        replay, learner = settings.replay, settings.learner
        items += [
            (memory.replay, lambda: f"lower replay.capacity ({replay.capacity})"),
            (memory.batches, lambda: f"lower learner.batch_segments ({learner.batch_segments})"),
        ]
    return max(items, key=lambda item: item[0])[1]()


# ------------------------------------------------------------------------------------------------- table


def memory_table(memory: RankMemory, limits: Limits) -> Table:
    """The plan of one rank beside what the machine has."""
    table = Table(title="memory a rank, planned", title_justify="left")
    for name in ("", "device", "host"):
        table.add_column(name, justify="right" if name else "left")
    policy = memory.policy
    shown = {
        "base weights": policy.frozen,
        "trained weights": policy.trainable,
        "behaviour twin": policy.twin,
        "gradients": policy.gradients,
        "optimiser": policy.optimizer,
        f"activations, micro-batch of {memory.micro_batch}": policy.activations,
        "workspace": policy.workspace,
        "libraries": policy.overhead,
    }
    for name, size in shown.items():
        if size:
            table.add_row(name, *(("", gib(size)) if memory.on_host else (gib(size), "")))
    if memory.drawing:
        table.add_row("drawing with EGL, estimated", gib(memory.drawing), "")
    if memory.replay:
        table.add_row("replay", "", f"{gib(memory.replay)} (at most {gib(memory.replay_most)})")
        table.add_row("batches, open segments", "", gib(memory.batches))
    table.add_row("simulator workers", "", gib(memory.workers))
    table.add_row("process", "", gib(memory.process))
    device = "" if memory.on_host else gib(memory.device)
    table.add_row("together", device, gib(memory.host), style="bold")
    shared = f" for {limits.ranks} ranks" if limits.ranks > 1 else ""
    have = "" if limits.device is None else gib(limits.device)
    table.add_row("there is", have, f"{gib(limits.host)}{shared}")
    return table


def gib(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:.1f} MiB"
