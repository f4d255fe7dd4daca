"""Memory of a run, planned before any of it is spent.

Everything here follows from the settings, the environment's spec and the machine's limits: no weight has
been read and no worker started when a run that cannot fit is refused. Two budgets are kept: one rank's device
(weights, adapters, optimiser, activations of the chosen micro-batch, the behaviour twin) and the host
(replay, batches, workers, processes), which the ranks of a machine share. Without a GPU the first is part of
the second.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch
from rich.table import Table

from gipo_envs import EnvironmentSpec
from gipo_envs.errors import UserError
from gipo_vla.config import Config
from gipo_vla.distributed import group
from gipo_vla.imitation.settings import AnyRun, SftConfig
from gipo_vla.policies.base import network_dtype
from gipo_vla.policies.memory_plan import MemoryPlan, Workload, plan_memory
from gipo_vla.policies.openvla_oft.prompt import prompt_ids
from gipo_vla.policies.openvla_oft.settings import ACTION_IDS, OpenVlaOftSettings
from gipo_vla.policies.openvla_oft.tiny_tokenizer import tiny_tokenizer
from gipo_vla.replay.plan import memory_plan as replay_plan
from gipo_vla.replay.segment import SegmentLayout, layout
from gipo_vla.rollout.memory import worker_bytes
from gipo_vla.telemetry.console import console

GIB = 2**30
PROCESS_BYTES = {"cpu": 900_000_000, "cuda": 3_000_000_000}
"""Of a training process without weights and data: interpreter, torch, transformers, DeepSpeed (measured on a
CPU), and CUDA's libraries (estimated)."""
CHARACTERS_A_TOKEN = 3
"""Of an instruction, at least: the Llama tokenizer's average is about 4."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank."""

    policy: MemoryPlan | None
    """On the device; None for small policies, whose few megabytes are among ``process``."""
    micro_batch: int
    """Samples in one forward and backward."""
    replay: int
    """With full-length segments but the tail of every episode."""
    replay_most: int
    """What the replay may grow to: its memory limit, or every segment one transition long."""
    batches: int
    """Drawn segments on their way to the device, and the open segments and shared memory of the actor."""
    workers: int
    process: int
    on_host: bool
    """The policy is on the CPU, so its memory is the host's."""

    @property
    def device(self) -> int:
        return self.policy.total if self.policy else 0

    @property
    def host(self) -> int:
        return self.replay + self.batches + self.workers + self.process + (self.device if self.on_host else 0)


@dataclass(frozen=True)
class Limits:
    """Bytes that the machine has."""

    host: int
    """Of the machine, or of the container."""
    device: int | None
    """Of one GPU; None on a CPU."""
    ranks: int = 1
    """Ranks on this machine, which share the host's."""


def plan_rank(config: AnyRun, spec: EnvironmentSpec, device: torch.device, world: int) -> RankMemory:
    """What one of ``world`` ranks will need."""
    reinforced = isinstance(config, Config)
    envs = config.rollout.workers * config.rollout.envs_per_worker
    replay = replay_most = batches = 0
    if isinstance(config, Config):
        micro_batch = config.learner.micro_batch_segments * config.replay.segment_length
        segment = segment_layout(config, spec)
        decisions = -(-spec.actions_limit // segment.chunk)
        planned = replay_plan(
            segment, config.replay.capacity // world, int(config.replay.memory_limit_gb * 1e9), decisions
        )
        replay, replay_most = planned.expected, planned.worst
        drawn = config.learner.batch_segments // world
        # A batch as drawn and as tensors; open segments, and observations in shared memory twice.
        batches = 2 * drawn * planned.per_segment
        batches += envs * (planned.per_segment + 2 * planned.per_segment // (segment.length + 1))
    else:
        micro_batch = config.sft.micro_batch_size
    policy = None
    if isinstance(config.policy, OpenVlaOftSettings):
        stage = config.learner.zero_stage
        policy = plan_memory(
            config.policy,
            Workload(
                micro_batch,
                envs,
                images=config.policy.images or spec.observation["images"].shape[0],
                proprio_size=_proprio_size(config.policy, spec),
                action_dims=spec.action_size,
                prompt_tokens=_prompt_tokens(config.policy, spec),
                dtype=_dtype_name(config, device),
                ranks=world,
                zero_stage=(1 if device.type == "cpu" else 2) if stage == "auto" else stage,
                cuda=device.type == "cuda",
                twins=_twins(config) if reinforced else 0,
            ),
        )
    return RankMemory(
        policy,
        micro_batch,
        replay,
        replay_most,
        batches,
        config.rollout.workers * worker_bytes(config.env.family, spec),
        PROCESS_BYTES[device.type],
        on_host=device.type == "cpu",
    )


def segment_layout(config: Config, spec: EnvironmentSpec) -> SegmentLayout:
    """The segments of a run, from its settings alone."""
    return layout(
        spec,
        config.replay.segment_length,
        config.policy.chunk,
        spec.action_size,
        getattr(config.policy, "bins", ACTION_IDS),
        store_logits=config.regularizers.kl_behaviour == "exact",
    )


def _twins(config: AnyRun) -> int:
    """Copies of what trains beside the learner's: the behaviour policy, and a frozen reference."""
    assert isinstance(config, Config)
    return 1 + (config.regularizers.kl_reference_coefficient > 0)


def _dtype_name(config: AnyRun, device: torch.device) -> Literal["float32", "bfloat16"]:
    dtype = network_dtype(config.learner.precision, device)
    return "bfloat16" if dtype == torch.bfloat16 else "float32"


def _proprio_size(policy: OpenVlaOftSettings, spec: EnvironmentSpec) -> int | None:
    """Of the proprioception token; where only the checkpoint knows whether there is one, that there is."""
    if policy.proprio is False or (policy.proprio is None and policy.checkpoint is None):
        return None
    given = spec.observation.get("proprio")
    return given.shape[0] if given else None


def _prompt_tokens(policy: OpenVlaOftSettings, spec: EnvironmentSpec) -> int:
    """Of the longest prompt: exact with the built-in tokenizer, at most that with a checkpoint's."""
    if policy.checkpoint is None:
        tokenizer = tiny_tokenizer(policy.architecture)
        return max(
            len(prompt_ids(tokenizer, policy.prompt, text, policy.architecture)) for text in spec.instructions
        )
    longest = max(len(policy.prompt.replace("{instruction}", text)) for text in spec.instructions)
    return longest // CHARACTERS_A_TOKEN


# ----------------------------------------------------------------------------------------------- machine


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


def refuse_what_cannot_fit(config: AnyRun, memory: RankMemory, limits: Limits) -> None:
    """Say no before anything is spent; a collective call.

    Raises:
        UserError: on every rank, if any of them has too little; names the setting to lower.
    """
    problems = [text for text in group.gather(problem(config, memory, limits)) if text is not None]
    if problems:
        raise UserError(problems[0])


def problem(config: AnyRun, memory: RankMemory, limits: Limits) -> str | None:
    """What does not fit, in one line; None if all does."""
    if limits.device is not None and memory.device > limits.device:
        assert memory.policy is not None
        return (
            f"a rank needs {_gib(memory.device)} of GPU memory and there are {_gib(limits.device)} "
            f"(weights {_gib(memory.policy.frozen + memory.policy.trainable)}, activations of a micro-batch "
            f"{_gib(memory.policy.activations + memory.policy.workspace)}): {_for_the_device(config, memory)}"
        )
    needed = memory.host * limits.ranks
    if needed > limits.host:
        ranks = f"{limits.ranks} ranks need" if limits.ranks > 1 else "the run needs"
        process = "policy and process" if memory.on_host and memory.policy else "process"
        return (
            f"{ranks} {_gib(needed)} of host memory and there are {_gib(limits.host)} (a rank: replay "
            f"{_gib(memory.replay)}, batches {_gib(memory.batches)}, workers {_gib(memory.workers)}, "
            f"{process} {_gib(memory.host - memory.replay - memory.batches - memory.workers)}): "
            f"{_for_the_host(config, memory)}"
        )
    return None


def _for_the_device(config: AnyRun, memory: RankMemory) -> str:
    """The setting that helps most."""
    plan, policy = memory.policy, config.policy
    assert plan is not None and isinstance(policy, OpenVlaOftSettings)
    by_sample = plan.activations + plan.workspace
    by_parameter = plan.trainable + plan.twin + plan.gradients + plan.optimizer
    if policy.training == "full" and by_parameter >= by_sample:
        return "set policy.training=lora"
    if plan.frozen > by_sample and config.learner.precision == "float32":
        return "set learner.precision=bfloat16"
    if not policy.activation_checkpointing:
        return "set policy.activation_checkpointing=true"
    return _smaller_micro_batch(config)


def _smaller_micro_batch(config: AnyRun) -> str:
    if isinstance(config, SftConfig):
        return f"lower sft.micro_batch_size ({config.sft.micro_batch_size})"
    if config.learner.micro_batch_segments > 1:
        return f"lower learner.micro_batch_segments ({config.learner.micro_batch_segments})"
    return f"lower replay.segment_length ({config.replay.segment_length})"


def _for_the_host(config: AnyRun, memory: RankMemory) -> str:
    """The setting of the greatest item."""
    items: list[tuple[int, Callable[[], str]]] = [
        (memory.workers, lambda: f"lower rollout.workers ({config.rollout.workers})"),
        (memory.device * memory.on_host, lambda: _smaller_micro_batch(config)),
    ]
    if isinstance(config, Config):
        replay, learner = config.replay, config.learner
        items += [
            (memory.replay, lambda: f"lower replay.capacity ({replay.capacity})"),
            (memory.batches, lambda: f"lower learner.batch_segments ({learner.batch_segments})"),
        ]
    return max(items, key=lambda item: item[0])[1]()


# ------------------------------------------------------------------------------------------------- table


def print_table(memory: RankMemory, limits: Limits) -> None:
    """The plan of one rank beside what the machine has, on stderr."""
    table = Table(title="memory a rank, planned", title_justify="left")
    for name in ("", "device", "host"):
        table.add_column(name, justify="right" if name else "left")
    plan = memory.policy
    if plan is not None:
        shown = {
            "base weights": plan.frozen,
            "trained weights": plan.trainable,
            "behaviour twin": plan.twin,
            "gradients": plan.gradients,
            "optimiser": plan.optimizer,
            f"activations, micro-batch of {memory.micro_batch}": plan.activations,
            "workspace": plan.workspace,
            "libraries": plan.overhead,
        }
        for name, size in shown.items():
            table.add_row(name, *(("", _gib(size)) if memory.on_host else (_gib(size), "")))
    if memory.replay:
        table.add_row("replay", "", f"{_gib(memory.replay)} (at most {_gib(memory.replay_most)})")
        table.add_row("batches, open segments", "", _gib(memory.batches))
    table.add_row("simulator workers", "", _gib(memory.workers))
    table.add_row("process", "", _gib(memory.process))
    device = "" if memory.on_host else _gib(memory.device)
    table.add_row("together", device, _gib(memory.host), style="bold")
    shared = f" for {limits.ranks} ranks" if limits.ranks > 1 else ""
    have = "" if limits.device is None else _gib(limits.device)
    table.add_row("there is", have, f"{_gib(limits.host)}{shared}")
    console.print(table)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
