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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gipo_vla.checkpoint import state_tree
from gipo_vla.checkpoint.policy_files import (
    POLICY_FILE,
    STATISTICS_FILE,
    load_policy,
    policy_tensors,
    statistics_of,
    trainable_tensors,
)
from gipo_vla.checkpoint.writer import CheckpointWriter, Content, Write, fits_in_memory
from gipo_vla.credit.base import CreditAssigner
from gipo_vla.distributed import group
from gipo_vla.learner.learner import Learner
from gipo_vla.policies.base import Policy
from gipo_vla.replay.ring import SegmentRing, read
from gipo_vla.replay.segment import Arrays, Segment
from gipo_vla.rollout.actor import Actor
from gipo_vla.rollout.episodes import Role, TrainingEpisodes, generator, integer_seed
from gipo_vla.rollout.records import EpisodeRecord
from gipo_vla.rollout.task_sampler import TaskSampler
from gipo_vla.settings.runs import to_yaml
from gipo_vla.settings.schema import TrainingSettings

if TYPE_CHECKING:
    from collections import deque


STATE_FILE = "run.json"
OPTIMIZER_FILE = "optimizer.safetensors"


class Run(Protocol):
    """The parts of a pipeline that have a state."""

    config: TrainingSettings
    device: torch.device
    iteration: int
    env_steps: int
    updates_done: list[dict[str, float]]
    numerical_floor: dict[str, float] | None
    recent: deque[EpisodeRecord]
    policy: Policy
    behaviour: Policy
    learner: Learner
    credit: CreditAssigner
    actor: Actor
    replay: SegmentRing
    replay_rng: np.random.Generator
    tasks: TaskSampler
    episodes: TrainingEpisodes


# ------------------------------------------------------------------------------------------------- saving


def save(checkpoints: Path, run: Run, extra: dict[str, Any]) -> Path:
    """Write a checkpoint now and return its folder (a collective call); for tests and small tools.

    Raises:
        OSError: it could not be written; the reason is on the console.
    """
    writer = CheckpointWriter(checkpoints, run.device, run.config.checkpoint.keep)
    begin(writer, run, extra)
    writer.wait()
    if writer.newest is None:
        raise OSError(f"no checkpoint could be written in {checkpoints}")
    return checkpoints / writer.newest


def begin(writer: CheckpointWriter, run: Run, extra: dict[str, Any]) -> None:
    """Copy the state and have it written while the run continues (a collective call).

    A replay too large for a second copy is written from where it is, and the run waits for it.

    Args:
        extra: further plain values for run.json (the tracker's run id).
    """
    writer.wait()  # two copies at once are one too many
    shared = shared_content(run.config, run.policy, _shared_tensors(run), _run_values(run) | extra)
    files, size = dict(shared.files), shared.bytes
    own = f"{_rank_name(group.rank())}/"
    arrays, values = run.actor.state()
    arrays = {name: np.array(array, order="C") for name, array in arrays.items()}
    plain, scorers = state_tree.split(run.credit.state_dict())
    values |= {"replay_rng": run.replay_rng.bit_generator.state, "credit": plain}
    values["group_tasks"] = run.episodes.state()
    files[own + "rank.json"] = text_writer(json.dumps(values))
    files[own + "actor.safetensors"] = _arrays_writer(arrays)
    files[own + "random.safetensors"] = tensors_writer(_random_states(run.device))
    files[own + "credit.safetensors"] = tensors_writer(scorers)
    size += sum(array.nbytes for array in arrays.values())
    background = fits_in_memory(run.replay.held(copy=False).bytes, run.device)
    held = run.replay.held(copy=background)
    files[own + "replay"] = held.save
    writer.begin(run.iteration, run.learner.attempted, Content(files, size + held.bytes), background)


def shared_content(
    settings: Any, policy: Policy, tensors: dict[str, dict[str, Tensor]], values: dict[str, Any]
) -> Content:
    """What is the same on every rank, and is written by the first one alone: settings, policy and its
    statistics, plain values for run.json, and further tensors by file.

    Args:
        tensors: copies on the CPU; what obtains them may be a collective call.
    """
    if group.rank() > 0:
        return Content({}, 0)
    assert isinstance(policy, nn.Module)
    tensors = {POLICY_FILE: policy_tensors(policy)} | tensors
    files = {name: tensors_writer(own) for name, own in tensors.items()}
    files["config.yaml"] = text_writer(to_yaml(settings))
    if statistics := statistics_of(policy):
        files[STATISTICS_FILE] = text_writer(json.dumps(statistics))
    files[STATE_FILE] = text_writer(json.dumps(values, indent=1))
    return Content(files, sum(tensor.nbytes for own in tensors.values() for tensor in own.values()))


def _shared_tensors(run: Run) -> dict[str, dict[str, Tensor]]:
    """Tensors beside the policy's that are the same on every rank (a collective call)."""
    assert isinstance(run.policy, nn.Module) and isinstance(run.behaviour, nn.Module)
    trainable = {name for name, parameter in run.policy.named_parameters() if parameter.requires_grad}
    optimizer = run.learner.optimizer_tensors()
    behaviour = trainable_tensors(run.behaviour, trainable) if group.rank() == 0 else {}
    return {"behaviour.safetensors": behaviour, OPTIMIZER_FILE: optimizer}


def _run_values(run: Run) -> dict[str, Any]:
    return {
        "iteration": run.iteration,
        "env_steps": run.env_steps,
        "updates_done": run.updates_done,
        "numerical_floor": run.numerical_floor,
        "recent": [asdict(record) for record in run.recent],
        "tasks": run.tasks.state(),
        "world_size": group.world_size(),
        "device": run.device.type,
        "environments_per_rank": run.actor.pool.envs,
        "learner": run.learner.counters(),
    }


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """Of torch's global generators. The run's own draws have generators of their own."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def text_writer(text: str) -> Write:
    return lambda path: _write_text(path, text)


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def tensors_writer(tensors: dict[str, Tensor]) -> Write:
    return lambda path: _write_safetensors(save_file, tensors, path)


def _arrays_writer(arrays: Arrays) -> Write:
    return lambda path: _write_safetensors(save_arrays, arrays, path)


def _write_safetensors(save: Callable[[Any, Path], None], tensors: dict[str, Any], path: Path) -> None:
    try:
        save(tensors, path)
    except SafetensorError as error:  # what everybody else calls an OSError: a full disk, for instance
        raise OSError(f"{error}: {path}") from error


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
def load(folder: Path, run: Run) -> Loaded:
    """Bring a new pipeline of the same settings to a checkpoint (a collective call).

    With as many ranks and environments as wrote it, on the same kind of device, the run continues to the bit.
    With others, parameters and optimiser are exact, the replay is dealt out anew, and every simulator begins
    an episode that was not played before. On another kind of device replay and simulators are exact as well,
    but actions are sampled from new streams: generators of CPU and GPU cannot take over each other's state.

    Raises:
        UserError: it was written with another policy or segment length.
    """
    assert isinstance(run.policy, nn.Module) and isinstance(run.behaviour, nn.Module)
    values: dict[str, Any] = json.loads((folder / STATE_FILE).read_text())
    load_policy(run.policy, folder)
    run.learner.load_optimizer_tensors(load_file(folder / OPTIMIZER_FILE))
    run.learner.load_counters(values["learner"])
    behaviour = dict(run.behaviour.named_parameters())
    for name, tensor in load_file(folder / "behaviour.safetensors").items():
        behaviour[name].copy_(tensor)
    run.iteration, run.env_steps = values["iteration"], values["env_steps"]
    run.updates_done = values["updates_done"]
    run.numerical_floor = values["numerical_floor"]
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


def _load_rank(folder: Path, rank: int, run: Run, new_streams: bool) -> None:
    own = folder / _rank_name(rank)
    values = json.loads((own / "rank.json").read_text())
    run.replay.load(own / "replay")
    run.replay_rng.bit_generator.state = values["replay_rng"]
    arrays = load_arrays(own / "actor.safetensors")
    if new_streams:
        stream = (rank, group.world_size(), run.learner.attempted)
        run.actor.generator.manual_seed(integer_seed(run.config.seed, Role.ACTION, *stream))
        arrays["generator"] = run.actor.generator.get_state().numpy()
    run.actor.load_state(arrays, values)
    run.episodes.load_state(values["group_tasks"])
    _load_credit(own, values, run)
    states = load_file(own / "random.safetensors")
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and run.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], run.device)


def _load_credit(own: Path, values: dict[str, Any], run: Run) -> None:
    run.credit.load_state_dict(state_tree.join(values["credit"], load_file(own / "credit.safetensors")))


def _deal_out(folder: Path, world_before: int, envs_before: int, run: Run) -> list[str]:
    """Share out the state of another number of ranks or environments; says what changed."""
    rank, world, envs = group.rank(), group.world_size(), run.actor.pool.envs
    folders = [folder / _rank_name(number) for number in range(world_before)]
    before = [json.loads((own / "rank.json").read_text()) for own in folders]
    stored = _deal_segments(folders, run.replay)
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
        f"replay: {kept} of {stored} segments kept, dealt out to {world} rank(s)",
        f"simulators: all begin episode number {played + 1}; the unfinished episodes and segments of "
        f"{world_before * envs_before} environments are dropped",
        "random streams of actions and batches: new ones",
    ]


def _deal_segments(folders: Sequence[Path], replay: SegmentRing) -> int:
    """Fill this rank's ring with its share of all ranks' segments; returns how many there are.

    Oldest first over all ranks, so that the ring's order stays that of age. A group stays on one rank and
    together: it is as old as its oldest segment.
    """
    segments: list[Segment] = []
    for own in folders:
        segments += read(own / "replay", replay.layout)
    ages: dict[int, int] = {}
    for segment in segments:
        age = segment.oldest_version
        ages[segment.group] = min(age, ages.get(segment.group, age))
    segments.sort(
        key=lambda segment: (
            ages[segment.group] if segment.group >= 0 else segment.oldest_version,
            segment.group,
        )
    )
    for index, segment in enumerate(segments):
        owner = segment.group if segment.group >= 0 else index
        if owner % group.world_size() == group.rank():
            replay.add(segment)
    return len(segments)
