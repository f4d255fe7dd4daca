"""The memory of a run, planned before any of it is spent, and refused where it cannot fit.

Two budgets are kept: one rank's device, and the host, which the ranks of a machine share. Without a GPU the
first is part of the second. A policy's settings and a worker's family declare what these take.

The plan is of training. Filming at the end takes a few hundred megabytes more for a minute, and a checkpoint
in the background copies of what trains and of the replay where the machine has room for them.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Literal

import psutil
import torch
from rich.table import Table

from gipo_envs import EnvironmentSpec
from gipo_envs import registry as families
from gipo_envs.errors import UserError
from gipo_vla.distributed import group
from gipo_vla.policies.base import network_dtype
from gipo_vla.policies.memory import DtypeName, PolicyMemory, Work
from gipo_vla.replay.segment import SegmentLayout
from gipo_vla.settings.cloning import SftSettings
from gipo_vla.settings.runs import RunSettings
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.console import table

GIB, MIB = 2**30, 2**20
SPARE = 0.95
"""Of a GPU's memory is used where a run chooses the size itself."""
PROCESS_BYTES = {"cpu": 480_000_000, "cuda": 3_000_000_000}
"""Resident in a training process beside policy and data: interpreter, torch, DeepSpeed and the console
(measured on a CPU), and CUDA's libraries (estimated)."""


@dataclass(frozen=True)
class ReplayMemory:
    """Bytes and transitions of one rank's replay."""

    per_segment: int
    expected: int
    """At the end of the run, with full-length segments but the tail of every episode."""
    most: int
    """What the slots could grow to: the memory limit, or every segment one transition long."""
    slots: int
    transitions: float
    """Held when it is full: the capacity, or what fits into the slots."""


NO_REPLAY = ReplayMemory(0, 0, 0, 0, 0.0)


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank."""

    policy: PolicyMemory
    """On the device."""
    micro_batch: int
    """Samples in one forward and backward."""
    replay: int
    replay_most: int
    """See ``ReplayMemory``."""
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
    checkpoint: int = 0
    """Copies of what trains while a checkpoint is written beside the next update: the first rank's, and only
    where there is room for them."""

    @property
    def device(self) -> int:
        return self.policy.total + self.drawing

    @property
    def resident(self) -> int:
        """The training process with policy and data."""
        return self.replay + self.batches + self.process + (self.device if self.on_host else 0)

    @property
    def peak(self) -> int:
        """The training process, where checkpoints are written in the background."""
        return self.resident + self.checkpoint

    @property
    def host(self) -> int:
        return self.resident + self.workers


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
    replay: ReplayMemory = NO_REPLAY,
) -> RankMemory:
    """The memory of one of ``world`` ranks; a training run's has a replay, whose segments it draws."""
    rollout, learner, on_cpu = settings.rollout, settings.learner, device.type == "cpu"
    twins, batches = 0, 0
    if isinstance(settings, TrainingSettings):
        # The behaviour policy, and a frozen reference.
        twins = 1 + (settings.regularizers.kl_reference_coefficient > 0)
        drawn, length = settings.learner.batch_segments // world, settings.replay.segment_length
        # A batch as drawn and as tensors; open segments, and observations in shared memory twice.
        batches = 2 * drawn * replay.per_segment
        batches += rollout.envs * (replay.per_segment + 2 * replay.per_segment // (length + 1))
    stage: Literal[1, 2] = 1 if on_cpu else 2
    work = Work(
        micro_batch_samples(settings, world),
        rollout.envs,
        dtype_of(settings, device),
        ranks=world,
        zero_stage=stage if learner.zero_stage == "auto" else learner.zero_stage,
        cuda=not on_cpu,
        twins=twins,
    )
    cost = families.get(settings.env.family).worker_cost
    policy = settings.policy.memory(work, spec)
    return RankMemory(
        policy,
        work.micro_batch,
        replay.expected,
        replay.most,
        batches,
        rollout.workers * cost.bytes(spec),
        PROCESS_BYTES[device.type],
        on_host=on_cpu,
        # A rank draws on the GPU that it computes on; on a CPU the workers' host memory has it.
        drawing=rollout.workers * cost.drawing_bytes(spec) * _draws_with_egl(device),
        # Weights of the policy (and its twin's), and of the optimiser with both moments.
        checkpoint=policy.trainable * (4 + (twins > 0)),
    )


def _draws_with_egl(device: torch.device) -> bool:
    """On a machine with a GPU, unless its user chose another way."""
    return device.type == "cuda" and os.environ.get("MUJOCO_GL", "").strip().lower() in ("", "egl")


def dtype_of(settings: RunSettings, device: torch.device) -> DtypeName:
    return "bfloat16" if network_dtype(settings.learner.precision, device) == torch.bfloat16 else "float32"


def micro_batch_samples(settings: RunSettings, world: int) -> int:
    """Samples in one forward and backward of one of ``world`` ranks."""
    if isinstance(settings, SftSettings):
        return min(settings.sft.micro_batch_size, settings.sft.batch_size // world)
    share = settings.learner.batch_segments // world
    segments = min(settings.micro_batch_segments, share)
    demonstrated = math.ceil(settings.demonstrated / world / math.ceil(share / segments))
    return segments * settings.replay.segment_length + demonstrated


def with_micro_batch(
    settings: TrainingSettings, spec: EnvironmentSpec, world: int, device: torch.device, limit: int | None
) -> TrainingSettings:
    """The settings with ``learner.micro_batch_rows=auto`` as a number: the most whole segments for which the
    GPU of every rank, this one's of ``limit`` bytes, has room by the plan, with a twentieth to spare. A
    collective call if it is auto.

    Raises:
        UserError: there is no GPU to ask.
    """
    if settings.learner.micro_batch_rows != "auto":
        return settings
    least = min(group.gather(limit or 0))
    if not least:
        raise UserError(
            "learner.micro_batch_rows=auto asks a GPU for its memory, and there is none: give a number"
        )
    length = settings.replay.segment_length

    def of(segments: int) -> TrainingSettings:
        return replace(settings, learner=replace(settings.learner, micro_batch_rows=segments * length))

    most = settings.learner.batch_segments // world
    sizes = range(max(most, 1), 1, -1)
    fits = (n for n in sizes if plan_memory(of(n), spec, world, device).device <= SPARE * least)
    return of(next(fits, 1))


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
    handles: int = 2**20
    """Files and sockets that a process may have open."""
    processes: int = 2**22
    """Processes and threads that the user may have."""


def machine_limits(device: torch.device) -> Limits:
    """What this machine or container has."""
    host = min(psutil.virtual_memory().total, container_limit() or 2**62)
    own = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    handles, processes = (_soft(resource.RLIMIT_NOFILE), _soft(resource.RLIMIT_NPROC))
    return Limits(host, own, int(os.environ.get("LOCAL_WORLD_SIZE", 1)), handles, processes)


def _soft(limit: int) -> int:
    soft, _ = resource.getrlimit(limit)
    return 2**62 if soft == resource.RLIM_INFINITY else soft


V1_FILE = "memory.limit_in_bytes"


def container_limit(
    cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Host memory that a container may use: the least limit of its control groups (version 1 or 2), None
    without one. Args: cgroups: where they are mounted; own: those of this process."""
    paths = {""}
    if own.is_file():
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):  # a limit may stand at any level above the process
                paths |= {str(level) for level in (PurePath(path[1:]), *PurePath(path[1:]).parents)}
    places = [(cgroups / path / "memory.max", cgroups / "memory" / path / V1_FILE) for path in paths]
    texts = [file.read_text().strip() for pair in places for file in pair if file.is_file()]
    return min((int(text) for text in texts if text.isdecimal()), default=None)


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
            f"{_for_the_host(settings, memory, limits)}"
        )
    return None


def _for_the_device(settings: RunSettings, memory: RankMemory, limit: int) -> str:
    """The setting that helps most."""
    if memory.policy.total <= limit:
        return f"lower rollout.workers ({settings.rollout.workers}), or draw on the CPU with MUJOCO_GL=osmesa"
    remedy = settings.policy.remedy(memory.policy, dtype_of(settings, torch.device("cuda")))
    return remedy or _smaller_micro_batch(settings)


def _smaller_micro_batch(settings: RunSettings) -> str:
    if isinstance(settings, SftSettings):
        return f"lower sft.micro_batch_size ({settings.sft.micro_batch_size})"
    if settings.learner.micro_batch_rows is not None and settings.micro_batch_segments > 1:
        return f"lower learner.micro_batch_rows ({settings.learner.micro_batch_rows})"
    if settings.micro_batch_segments > 1:
        return f"lower learner.micro_batch_segments ({settings.learner.micro_batch_segments})"
    return f"lower replay.segment_length ({settings.replay.segment_length})"


def _for_the_host(settings: RunSettings, memory: RankMemory, limits: Limits) -> str:
    """Fewer ranks, where what each of them holds is too much whatever the batches are; else the setting of
    the greatest item."""
    policy, fit = memory.policy, limits.host // memory.host
    held = memory.process + (policy.held if memory.on_host else 0)
    if 0 < fit < limits.ranks and limits.ranks * held > limits.host:
        return f"start {fit} here (--nproc-per-node={fit}), since each holds the whole policy"
    remedy = settings.policy.remedy(policy, dtype_of(settings, torch.device("cpu")))
    items = {
        f"lower rollout.workers ({settings.rollout.workers})": memory.workers,
        remedy or _smaller_micro_batch(settings): memory.device * memory.on_host,
    }
    if isinstance(settings, TrainingSettings):
        items[f"lower replay.capacity ({settings.replay.capacity})"] = memory.replay
        items[f"lower learner.batch_segments ({settings.learner.batch_segments})"] = memory.batches
    return max(items, key=lambda remedy: items[remedy])


# ------------------------------------------------------------------------------------------------- table


def memory_table(memory: RankMemory, limits: Limits) -> Table:
    """The plan of one rank beside what the machine has."""
    policy = memory.policy
    show = in_one_unit(max(memory.device, memory.host))
    rows = {
        "base weights": policy.frozen,
        "trained weights": policy.trainable,
        "behaviour twin": policy.twin,
        "gradients": policy.gradients,
        "optimiser": policy.optimizer,
        **_transients(memory, show),
        "libraries": policy.overhead,
    }
    cells = [
        (name, *(("", show(size)) if memory.on_host else (show(size), "")))
        for name, size in rows.items()
        if size
    ]
    if memory.drawing:
        cells.append(("drawing with EGL, estimated", show(memory.drawing), ""))
    if memory.replay:
        cells.append(("replay", "", f"{show(memory.replay)} (at most {show(memory.replay_most)})"))
        cells.append(("batches, open segments", "", show(memory.batches)))
    cells.append(("simulator workers", "", show(memory.workers)))
    cells.append(("process", "", show(memory.process)))
    device = "" if memory.on_host else show(memory.device)
    cells.append(("[bold]together", f"[bold]{device}", f"[bold]{show(memory.host)}"))
    shared = f" for {limits.ranks} ranks" if limits.ranks > 1 else ""
    have = "" if limits.device is None else show(limits.device)
    cells.append(("there is", have, f"{show(limits.host)}{shared}"))
    cells.append(("a checkpoint beside it, if room", "", show(memory.checkpoint)))
    return table("memory a rank, planned", ("", "device", "host"), cells)


def _transients(memory: RankMemory, show: Callable[[float], str]) -> dict[str, int]:
    """The rows of what comes and goes: of the two halves of an update, the one that takes more."""
    policy = memory.policy
    activations = f"activations, micro-batch of {memory.micro_batch}"
    if policy.stepping > policy.activations + policy.workspace:
        return {f"step of the optimiser ({activations}, {show(policy.activations)})": policy.stepping}
    return {activations: policy.activations, "workspace": policy.workspace}


def gib(size: float) -> str:
    """A number of bytes for people, in a sentence."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / MIB:.1f} MiB"


def in_one_unit(largest: float) -> Callable[[float], str]:
    """Numbers of bytes for people that stand below or beside each other, in GiB if the largest of them has
    ten, else in MiB."""
    if largest >= 10 * GIB:
        return lambda size: f"{size / GIB:,.2f} GiB"
    return lambda size: f"{size / MIB:,.1f} MiB"


def measure_memory(device: torch.device, workers: Sequence[int] = ()) -> dict[str, int | None]:
    """The memory of the run so far, the largest of the ranks, by the names of ``plan.Measured``; a collective
    call. To be made when the training is done, before an evaluation or a video takes memory.

    Args:
        workers: process ids of this rank's simulator workers.
    """
    unshared = sum(private_bytes(psutil.Process(pid)) for pid in workers)
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    process, unshared, on_device = map(max, zip(*group.gather((peak_resident_bytes(), unshared, on_device))))
    return {
        "process_bytes": process,
        "worker_bytes": unshared if workers else None,
        "device_bytes": on_device or None,
    }


def private_bytes(process: psutil.Process) -> int:
    """Return the memory of a process that no file backs and no other process shares.

    On Linux this is the resident set without the pages of files. The unique set would count those that only
    this process has mapped at the moment: tens of megabytes of code that come and go with the system's cache.

    Raises:
        psutil.NoSuchProcess: it has ended.
    """
    if psutil.LINUX:
        info = process.memory_info()
        return int(info.rss - info.shared)
    return int(process.memory_full_info().uss)


def peak_resident_bytes() -> int:
    """Return this process's largest resident set so far.

    From Linux itself where it tells: what ``getrusage`` says begins with the peak of the process that
    started this one.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
