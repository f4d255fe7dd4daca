"""Everything that a run needs to resume to the bit: what is written and how it is read back.

    config.yaml              composed settings
    run.json                 iteration, cursor in the schedule, counters, running statistics, tasks, wandb id
    policy.safetensors       trainable tensors and normalisation statistics of the learner
    dataset_statistics.json  of the demonstrations, for policies that normalise by them
    behaviour.safetensors    trainable tensors of the behaviour policy (it may lag behind the learner)
    optimizer.safetensors    float32 weights and moments by parameter name, for any number of ranks
    rank-00000/              one folder a rank
      replay/                segments held, one npy a field
      actor.safetensors      open, closed and waiting segments; actions of every simulator since its reset
      random.safetensors     torch's own random states
      credit.safetensors     tensors of the credit's scorers
      rank.json              episode plans, random generators, counters, scorers

Nothing executes on load: safetensors, JSON, and npy without pickle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor, nn

from gipo_vla import foreign
from gipo_vla.checkpoint import state_tree, stored
from gipo_vla.checkpoint.policy_files import (
    POLICY_FILE,
    STATISTICS_FILE,
    load_policy,
    policy_tensors,
    trainable_tensors,
)
from gipo_vla.checkpoint.writer import CheckpointWriter, Content, Write, fits_in_memory
from gipo_vla.distributed import group
from gipo_vla.policies.base import Policy
from gipo_vla.replay.ring import read
from gipo_vla.replay.segment import Segment, SegmentBatch
from gipo_vla.rollout.episodes import Role, generator, integer_seed
from gipo_vla.rollout.records import EpisodeRecord
from gipo_vla.settings.runs import to_yaml

if TYPE_CHECKING:
    from gipo_vla.pipeline import Pipeline

STATE_FILE = "run.json"
OPTIMIZER_FILE = "optimizer.safetensors"
ACTOR_FILE = "actor.safetensors"
PLAIN_VALUES = ("iteration", "env_steps", "updates_done", "numerical_floor")
"""Attributes of a pipeline that run.json holds as they are."""


# ------------------------------------------------------------------------------------------------- saving


def begin(writer: CheckpointWriter, run: Pipeline, extra: dict[str, Any]) -> None:
    """Copy the state and have it written while the run continues (a collective call). Where memory is short a
    replay is written from where it is, and the run waits.

    Args:
        extra: further plain values for run.json (the tracker's run id).
    """
    writer.wait()  # two copies at once are one too many
    shared = shared_content(run.config, run.policy, _shared_tensors(run), _run_values(run) | extra)
    arrays, values = run.actor.state()
    arrays = {name: np.array(array, order="C") for name, array in arrays.items()}
    plain, scorers = state_tree.split(run.credit.state_dict())
    values |= {"replay_rng": run.replay_rng.bit_generator.state, "credit": plain}
    values["group_tasks"] = run.episodes.state()
    # Torch's global generators; the run's own draws have generators of their own.
    random = {"cpu": torch.get_rng_state()}
    if run.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(run.device)
    # Room for the replay's copy, and as much again as was copied already: the next update takes its own.
    background = fits_in_memory(run.replay.held(copy=False).bytes + shared.bytes)
    held = run.replay.held(copy=background)
    own = {
        "rank.json": text_writer(json.dumps(values)),
        ACTOR_FILE: _tensors_writer(arrays, save_arrays),
        "random.safetensors": _tensors_writer(random),
        "credit.safetensors": _tensors_writer(scorers),
        "replay": held.save,
    }
    files = dict(shared.files) | {f"{_rank_name(group.rank())}/{name}": write for name, write in own.items()}
    size = shared.bytes + sum(array.nbytes for array in arrays.values()) + held.bytes
    writer.begin(run.iteration, run.learner.attempted, Content(files, size), background)


def shared_content(
    settings: Any, policy: Policy, tensors: dict[str, dict[str, Tensor]], values: dict[str, Any]
) -> Content:
    """What is the same on every rank, and is written by the first one alone: policy, settings, ``values``
    for run.json, and ``tensors`` by file (copies on the CPU)."""
    if group.rank() > 0:
        return Content({}, 0)
    assert isinstance(policy, nn.Module)
    tensors = {POLICY_FILE: policy_tensors(policy)} | tensors
    texts = {"config.yaml": to_yaml(settings), STATE_FILE: json.dumps(values, indent=1)}
    if statistics := getattr(policy, "statistics_entries", None):  # of those who normalise by demonstrations
        texts[STATISTICS_FILE] = json.dumps(statistics)
    files = {name: _tensors_writer(own) for name, own in tensors.items()}
    files |= {name: text_writer(text) for name, text in texts.items()}
    return Content(files, sum(tensor.nbytes for own in tensors.values() for tensor in own.values()))


def _shared_tensors(run: Pipeline) -> dict[str, dict[str, Tensor]]:
    """Tensors beside the policy's that are the same on every rank (a collective call)."""
    assert isinstance(run.policy, nn.Module) and isinstance(run.behaviour, nn.Module)
    trainable = {name for name, parameter in run.policy.named_parameters() if parameter.requires_grad}
    optimizer = run.learner.optimizer_tensors()
    behaviour = trainable_tensors(run.behaviour, trainable) if group.rank() == 0 else {}
    return {"behaviour.safetensors": behaviour, OPTIMIZER_FILE: optimizer}


def _run_values(run: Pipeline) -> dict[str, Any]:
    return {
        **{name: getattr(run, name) for name in PLAIN_VALUES},
        "recent": [asdict(record) for record in run.recent],
        "tasks": run.tasks.state(),
        "world_size": group.world_size(),
        "device": run.device.type,
        "environments_per_rank": run.actor.pool.envs,
        "learner": run.learner.counters(),
    }


def text_writer(text: str) -> Write:
    """What writes a text file of a checkpoint."""

    def write(path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    return write


def _tensors_writer(tensors: Mapping[str, Any], save: Callable[[Any, Path], None] = save_file) -> Write:
    def write(path: Path) -> None:
        try:
            save(tensors, path)
        except SafetensorError as error:  # what everybody else calls an OSError: a full disk, for instance
            raise OSError(f"{error}: {path}") from error

    return write


def _rank_name(rank: int) -> str:
    return f"rank-{rank:05d}"


# ------------------------------------------------------------------------------------------------ loading


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint brought."""

    values: dict[str, Any]
    """run.json."""
    changes: tuple[str, ...] = ()
    """A line for each thing that is not as it was; none: the run continues to the bit."""


@torch.no_grad()
def load(folder: Path, run: Pipeline) -> Loaded:
    """Bring a new pipeline of the same settings to a checkpoint (a collective call).

    With as many ranks and environments as wrote it, on the same kind of device, the run continues to the bit.
    With others, parameters and optimiser are exact, the replay is dealt out anew, and every simulator begins
    an episode that was not played before. On another kind of device replay and simulators are exact as well,
    but actions are sampled from new streams: generators of CPU and GPU cannot take over each other's state.

    Raises:
        UserError: it was written with another policy or segment length, or holds what no run writes.
    """
    assert isinstance(run.policy, nn.Module) and isinstance(run.behaviour, nn.Module)
    values = stored.read(folder / STATE_FILE, stored.TrainingRun)
    stored.check_run(folder / STATE_FILE, values, run.plans.spec, run.config.learner.updates)
    load_policy(run.policy, folder)
    behaviour_file = folder / "behaviour.safetensors"
    tensors, behaviour = foreign.read_tensors(behaviour_file), dict(run.behaviour.named_parameters())
    trainable = {name for name, parameter in run.policy.named_parameters() if parameter.requires_grad}
    stored.check_tensors(behaviour_file, tensors, {name: behaviour[name] for name in trainable})
    for name, tensor in tensors.items():
        behaviour[name].copy_(tensor)
    optimizer = foreign.read_tensors(folder / OPTIMIZER_FILE)
    stored.check_finite(folder / OPTIMIZER_FILE, optimizer)
    with foreign.understood(folder / OPTIMIZER_FILE):
        run.learner.load_optimizer_tensors(optimizer)
    with foreign.understood(folder / STATE_FILE):
        run.learner.load_counters(values["learner"])
        for name in PLAIN_VALUES:
            setattr(run, name, values[name])
        run.recent.extend(EpisodeRecord(**record) for record in values["recent"])
        run.tasks.load_state(values["tasks"])
    before = (values["world_size"], values["environments_per_rank"])
    moved = moved_between_devices(values, run.device)
    if before != (group.world_size(), run.actor.pool.envs):
        return Loaded(values, (*moved, *_deal_out(folder, *before, run)))
    _load_rank(folder, group.rank(), run, new_streams=bool(moved))
    if not moved:
        return Loaded(values)
    kept = (
        "parameters, optimizer, statistics, counters, replay and simulators: exactly as they were",
        "random streams of actions: new ones",
        f"numerical floor of the log-ratios: still that of the {values['device']}",
    )
    return Loaded(values, (*moved, *kept))


def moved_between_devices(values: dict[str, Any], device: torch.device) -> tuple[str, ...]:
    """A line if run.json was written on another kind of device; what follows is not equal to the bit."""
    before = values.get("device", device.type)
    return () if before == device.type else (f"device: {before} -> {device.type}",)


def _load_rank(folder: Path, rank: int, run: Pipeline, new_streams: bool) -> None:
    own, envs = folder / _rank_name(rank), run.actor.pool.envs
    values = stored.read(own / "rank.json", stored.Rank)
    run.replay.load(own / "replay", partial(_check_segments, run))
    arrays = foreign.read_arrays(own / ACTOR_FILE)
    ids, layout = range(rank * envs, (rank + 1) * envs), run.plans.layout
    stored.check_actor(own / ACTOR_FILE, arrays, values, layout, run.plans.spec, ids)
    for part in ("open", "closed", "waiting"):
        batch = SegmentBatch.from_arrays({name: arrays[f"{part}/{name}"] for name in layout.fields})
        _check_segments(run, own / ACTOR_FILE, batch, under_way=part == "open")
    if new_streams:
        stream = (rank, group.world_size(), run.learner.attempted)
        run.actor.generator.manual_seed(integer_seed(run.config.seed, Role.ACTION, *stream))
        arrays["generator"] = run.actor.generator.get_state().numpy()
    with foreign.understood(own / "rank.json"):
        run.replay_rng.bit_generator.state = values["replay_rng"]
        run.episodes.load_state(values["group_tasks"])
    with foreign.understood(own / ACTOR_FILE, RuntimeError):
        torch.Generator(run.device).set_state(torch.from_numpy(arrays["generator"]))  # before simulators move
    with foreign.understood(own):
        run.actor.load_state(arrays, values)
    _load_credit(own, values, run)
    states = foreign.read_tensors(own / "random.safetensors")
    with foreign.understood(own / "random.safetensors", RuntimeError):
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and run.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], run.device)


def _check_segments(run: Pipeline, path: Path, batch: SegmentBatch, under_way: bool = False) -> None:
    spec, layout = run.plans.spec, run.plans.layout
    stored.check_segments(path, batch, layout, run.policy.bins, len(spec.tasks), under_way)


def _load_credit(own: Path, values: dict[str, Any], run: Pipeline) -> None:
    tensors = foreign.read_tensors(own / "credit.safetensors")
    stored.check_finite(own / "credit.safetensors", tensors)
    with foreign.understood(own / "credit.safetensors", RuntimeError):
        run.credit.load_state_dict(state_tree.join(values["credit"], tensors))


def _deal_out(folder: Path, world_before: int, envs_before: int, run: Pipeline) -> list[str]:
    """Share out the state of another number of ranks or environments; says what changed."""
    rank, world, envs = group.rank(), group.world_size(), run.actor.pool.envs
    folders = [folder / _rank_name(number) for number in range(world_before)]
    before = [stored.read(own / "rank.json", stored.Rank) for own in folders]
    found = _deal_segments(folders, run)
    _load_credit(folders[rank % world_before], before[rank % world_before], run)
    actor, learner = run.actor, run.learner
    # The totals of the run continue on the first rank.
    if rank == 0:
        for name in ("env_steps", "decisions"):
            setattr(actor, name, sum(own[name] for own in before))
        actor.groups.dropped_segments = sum(own["dropped_segments"] for own in before)
        actor.pool.faults = sum(own["faults"] for own in before)
    actor.version = before[0]["version"]
    played = max(plan["episode"] for own in before for plan in own["following"])
    actor.begin_episode_number(played + 1)
    # Streams that this run has not used yet.
    ids = (rank, world, learner.attempted)
    run.replay_rng = generator(run.config.seed, Role.REPLAY, *ids)
    actor.generator.manual_seed(integer_seed(run.config.seed, Role.ACTION, *ids))
    kept = sum(group.gather(len(run.replay)))
    return [
        f"ranks: {world_before} -> {world}, environments a rank: {envs_before} -> {envs}",
        "parameters, optimizer, statistics and counters: exactly as they were",
        f"replay: {kept} of {found} segments kept, dealt out to {world} rank(s)",
        f"simulators: all begin episode number {played + 1}; the unfinished episodes and segments of "
        f"{world_before * envs_before} environments are dropped",
        "random streams of actions and batches: new ones",
    ]


def _deal_segments(folders: Sequence[Path], run: Pipeline) -> int:
    """Fill this rank's ring with its share of all ranks' segments; returns how many there are."""
    # Oldest first over all ranks, so that the ring's order stays that of age. A group stays on one rank and
    # together: it is as old as its oldest segment.
    replay, segments = run.replay, []
    for own in folders:
        batch = read(own / "replay", replay.layout)
        _check_segments(run, own / "replay", batch)
        segments += list(batch)
    ages: dict[int, int] = {}
    for segment in segments:
        oldest = segment.oldest_version
        ages[segment.group] = min(oldest, ages.get(segment.group, oldest))

    def age(segment: Segment) -> tuple[int, int]:
        return ages[segment.group] if segment.group >= 0 else segment.oldest_version, segment.group

    for index, segment in enumerate(sorted(segments, key=age)):
        owner = segment.group if segment.group >= 0 else index
        if owner % group.world_size() == group.rank():
            replay.add(segment)
    return len(segments)
