"""Everything a run needs to go on, to the bit: what is written and how it is read back.

    config.yaml              composed settings
    run.json                 iteration, cursor in the schedule, counters, running statistics
    policy.safetensors       trainable tensors and normalisation statistics of the learner
    behaviour.safetensors    those of the behaviour policy (it may lag behind the learner)
    optimizer.safetensors    float32 weights and moments by parameter name, for any number of ranks
    rank-00000/              one folder a rank
      replay/                segments held, one npy a field
      actor.safetensors      open and closed segments, actions of every simulator since its reset
      rank.json              episode plans, random generators, counters

Nothing executes on load: safetensors, JSON, and npy without pickle.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import nn

from gipo_vla.checkpoint import folder as folders
from gipo_vla.checkpoint.policy_files import load_policy, save_policy
from gipo_vla.config import Config, to_yaml
from gipo_vla.distributed import group
from gipo_vla.learner.learner import Learner
from gipo_vla.policies.base import Policy
from gipo_vla.replay.ring import SegmentRing, read
from gipo_vla.replay.segment import Arrays, iterate, oldest_version
from gipo_vla.rollout.actor import Actor, EpisodeRecord

if TYPE_CHECKING:
    from collections import deque


class Run(Protocol):
    """The parts of a pipeline that have a state."""

    config: Config
    iteration: int
    env_steps: int
    updates_done: list[dict[str, float]]
    recent: deque[EpisodeRecord]
    policy: Policy
    behaviour: Policy
    learner: Learner
    actor: Actor
    replay: SegmentRing
    replay_rng: np.random.Generator


def save(checkpoints: Path, run: Run, extra: dict[str, Any]) -> Path:
    """Write a checkpoint (a collective call); returns its folder.

    Args:
        extra: further plain values for run.json (the tracker's run id).
    """
    assert isinstance(run.policy, nn.Module) and isinstance(run.behaviour, nn.Module)
    name = folders.name_of(run.iteration, run.learner.attempted)
    rank = group.rank()
    if rank == 0:
        folders.prepare(checkpoints, name)
    group.barrier()
    partial = folders.partial_folder(checkpoints, name)
    _save_rank(partial / _rank_name(rank), run)
    optimizer = run.learner.optimizer_tensors()
    if rank == 0:
        save_policy(run.policy, partial)
        trainable = {name for name, parameter in run.policy.named_parameters() if parameter.requires_grad}
        behaviour = {
            name: parameter.detach().cpu().contiguous()
            for name, parameter in run.behaviour.named_parameters()
            if name in trainable
        }
        save_file(behaviour, partial / "behaviour.safetensors")
        save_file(optimizer, partial / "optimizer.safetensors")
        (partial / "config.yaml").write_text(to_yaml(run.config))
        values = {
            "iteration": run.iteration,
            "env_steps": run.env_steps,
            "updates_done": run.updates_done,
            "recent": [asdict(record) for record in run.recent],
            "world_size": group.world_size(),
            "learner": run.learner.counters(),
        }
        (partial / "run.json").write_text(json.dumps(values | extra, indent=1))
    group.barrier()
    if rank == 0:
        folders.complete(checkpoints, name)
        folders.prune(checkpoints, run.config.checkpoint.keep)
    group.barrier()
    return checkpoints / name


def _save_rank(folder: Path, run: Run) -> None:
    folder.mkdir()
    run.replay.save(folder / "replay")
    arrays, values = run.actor.state()
    save_arrays({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "actor.safetensors")
    values["replay_rng"] = run.replay_rng.bit_generator.state
    (folder / "rank.json").write_text(json.dumps(values))


@torch.no_grad()
def load(folder: Path, run: Run) -> dict[str, Any]:
    """Bring a new pipeline of the same settings to a checkpoint; returns run.json.

    At the number of ranks that wrote it the run continues to the bit. At another number, parameters and
    optimiser are exact, the replay is dealt out anew, and every simulator begins an episode that was not
    played before.
    """
    assert isinstance(run.policy, nn.Module) and isinstance(run.behaviour, nn.Module)
    values: dict[str, Any] = json.loads((folder / "run.json").read_text())
    load_policy(run.policy, folder)
    run.learner.load_optimizer_tensors(load_file(folder / "optimizer.safetensors"))
    run.learner.load_counters(values["learner"])
    behaviour = dict(run.behaviour.named_parameters())
    for name, tensor in load_file(folder / "behaviour.safetensors").items():
        behaviour[name].copy_(tensor)
    run.iteration, run.env_steps = values["iteration"], values["env_steps"]
    run.updates_done = values["updates_done"]
    run.recent.extend(EpisodeRecord(**record) for record in values["recent"])
    if values["world_size"] == group.world_size():
        _load_rank(folder / _rank_name(group.rank()), run)
    else:
        _deal_out(folder, values["world_size"], run)
    return values


def _load_rank(own: Path, run: Run) -> None:
    values = json.loads((own / "rank.json").read_text())
    run.replay.load(own / "replay")
    run.replay_rng.bit_generator.state = values["replay_rng"]
    run.actor.load_state(load_arrays(own / "actor.safetensors"), values)


def _deal_out(folder: Path, world_before: int, run: Run) -> None:
    """Share out the segments of another number of ranks; groups stay on one rank."""
    rank, world = group.rank(), group.world_size()
    before = [json.loads((folder / _rank_name(r) / "rank.json").read_text()) for r in range(world_before)]
    segments: list[Arrays] = []
    for r in range(world_before):
        segments += iterate(read(folder / _rank_name(r) / "replay", run.replay.layout))
    # Oldest first over all ranks, so that the ring's order stays that of age.
    segments.sort(key=oldest_version)
    for index, segment in enumerate(segments):
        owner = int(segment["group"]) if segment["group"] >= 0 else index
        if owner % world == rank:
            run.replay.add(segment)
    actor = run.actor
    # The totals of the run go on, on the first rank.
    if rank == 0:
        for name in ("env_steps", "decisions", "dropped_segments"):
            setattr(actor, name, sum(own[name] for own in before))
        actor.pool.faults = sum(own["faults"] for own in before)
    actor.version = before[0]["version"]
    played = max(plan["episode"] for own in before for plan in own["following"])
    actor.begin_episode_number(played + 1)


def _rank_name(rank: int) -> str:
    return f"rank-{rank:05d}"
