"""Demonstrations: one episode in memory, and many on disk in npy and JSON, nothing that executes on load.

    demonstrations/
      demonstrations.json         what was recorded, one entry an episode
      actions.npy                 float32 (T, A) in [-1, 1], the episodes one after the other
      observed_at.npy             int64 (N,) for each observation, the row in actions of what follows it
      observation-<name>.npy      (N, ...) images, proprio, state: those that the environment gives

Arrays are written episode by episode and read through memory maps, so neither needs the images of a large
data set in memory. The folder gets its name when it is complete. Imports no torch: recorders need this.

Shape suffixes: T actions of all episodes, A action size, N observations of all episodes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gipo_envs import EnvironmentSpec
from gipo_envs.errors import UserError

FORMAT = 1
FACTS = "demonstrations.json"


@dataclass(frozen=True)
class Episode:
    """A successful episode: what was seen, and what an expert does there."""

    task: int
    """Into ``EnvironmentSpec.tasks``."""
    initial_state: int
    """Key of the task's sampler; -1 where a data set does not tell."""
    actions: NDArray[np.float32]
    """(T, A) in [-1, 1], of the expert; each is held for ``action_repeat`` env steps."""
    observed_at: NDArray[np.int64]
    """(N,) ascending: how many actions had been executed when each observation was made."""
    observations: dict[str, NDArray[Any]]
    """(N, ...) those of ``EnvironmentSpec.observation`` but ``task``."""


@dataclass(frozen=True)
class Record:
    """Where one episode lies in the arrays."""

    task: str
    initial_state: int
    """Key of the task's sampler; -1 where a data set does not tell."""
    first_action: int
    actions: int
    first_row: int
    rows: int


@dataclass
class Costs:
    """What recording took."""

    attempts: int = 0
    """Episodes that an expert began for those kept; 0: they came from files."""
    env_steps: int = 0
    """Simulated for that."""


# ------------------------------------------------------------------------------------------------ writing


class _GrowingArray:
    """An npy file to which rows are appended; its header is written again at the end.

    numpy pads headers so that the length of the first axis can change in place.
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: Any) -> None:
        self.row_shape, self.dtype, self.length = row_shape, np.dtype(dtype), 0
        self._file: BinaryIO = path.open("wb+")
        self._start = self._write_header()

    def append(self, rows: NDArray[Any]) -> None:
        assert rows.shape[1:] == self.row_shape, (rows.shape, self.row_shape)
        self._file.write(np.ascontiguousarray(rows, self.dtype).tobytes())
        self.length += len(rows)

    def close(self) -> None:
        assert self._write_header() == self._start, "the header has grown"
        self._file.close()

    def _write_header(self) -> int:
        shape, descr = (self.length, *self.row_shape), np.lib.format.dtype_to_descr(self.dtype)
        self._file.seek(0)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()


def observation_names(spec: EnvironmentSpec) -> list[str]:
    """Observations that are stored; ``task`` is known from the episode."""
    return [name for name in spec.observation if name != "task"]


def write(
    folder: Path, spec: EnvironmentSpec, episodes: Iterable[Episode], source: str, costs: Costs | None = None
) -> None:
    """Write episodes as they come; at the end the folder gets its name.

    Args:
        source: what they come from, for the record.
        costs: read when the last episode has come.

    Raises:
        UserError: there is no episode.
    """
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    arrays = {
        "actions": _GrowingArray(partial / "actions.npy", (spec.action_size,), np.float32),
        "observed_at": _GrowingArray(partial / "observed_at.npy", (), np.int64),
    }
    for name in observation_names(spec):
        array = spec.observation[name]
        arrays[name] = _GrowingArray(_observation_file(partial, name), array.shape, array.dtype)
    records = []
    try:
        for episode in episodes:
            records.append(_append(arrays, spec, episode))
    finally:
        for growing in arrays.values():
            growing.close()
    if not records:
        raise UserError("there is no demonstration: give a source that has some for this environment's tasks")
    facts = {
        "format": FORMAT,
        "source": source,
        **asdict(costs or Costs()),
        "tasks": spec.tasks,
        "instructions": spec.instructions,
        "action_size": spec.action_size,
        "action_repeat": spec.action_repeat,
        "observation": {name: asdict(spec.observation[name]) for name in observation_names(spec)},
        "episodes": [asdict(record) for record in records],
    }
    (partial / FACTS).write_text(json.dumps(facts, indent=1))
    partial.rename(folder)


def _append(arrays: dict[str, _GrowingArray], spec: EnvironmentSpec, episode: Episode) -> Record:
    record = Record(
        task=spec.tasks[episode.task],
        initial_state=episode.initial_state,
        first_action=arrays["actions"].length,
        actions=len(episode.actions),
        first_row=arrays["observed_at"].length,
        rows=len(episode.observed_at),
    )
    arrays["observed_at"].append(record.first_action + episode.observed_at)
    arrays["actions"].append(episode.actions)
    for name in observation_names(spec):
        arrays[name].append(episode.observations[name])
    return record


def _observation_file(folder: Path, name: str) -> Path:
    return folder / f"observation-{name}.npy"


# ------------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True)
class Demonstrations:
    """Episodes of a folder, for an environment. Arrays are of all episodes in the folder."""

    folder: Path
    records: tuple[Record, ...]
    """The episodes taken."""
    task_index: tuple[int, ...]
    """Of each episode taken, into the environment's tasks."""
    actions: NDArray[np.float32]
    """(T, A)."""
    observed_at: NDArray[np.int64]
    """(N,)."""
    observations: dict[str, NDArray[Any]]
    """(N, ...) memory maps."""
    attempts: int
    env_steps: int

    @property
    def rows(self) -> NDArray[np.int64]:
        """Observations of the episodes taken."""
        return np.concatenate([np.arange(r.first_row, r.first_row + r.rows) for r in self.records])

    @property
    def action_rows(self) -> NDArray[np.int64]:
        """Actions of the episodes taken."""
        return np.concatenate([np.arange(r.first_action, r.first_action + r.actions) for r in self.records])


def exists(folder: Path) -> bool:
    """Whether a complete recording lies there."""
    return (folder / FACTS).is_file()


def read(folder: Path, spec: EnvironmentSpec, count: int | None = None) -> Demonstrations:
    """The demonstrations in a folder that are of an environment's tasks.

    Args:
        count: episodes taken of each task, the first ones; None: all.

    Raises:
        UserError: the folder cannot be read, or was recorded for another kind of environment.
    """
    facts = _read_facts(folder)
    _check(folder, facts, spec)
    taken: dict[str, list[Record]] = {task: [] for task in spec.tasks}
    for record in (Record(**values) for values in facts["episodes"]):
        own = taken.get(record.task)
        if own is not None and (count is None or len(own) < count):
            own.append(record)
    for task, own in taken.items():
        if not own or (count is not None and len(own) < count):
            raise UserError(
                f"{folder} holds {len(own)} demonstrations of {task}, {count or 'at least one'} wanted: "
                "lower demonstrations.count, or name another source"
            )
    records = [(index, record) for index, own in enumerate(taken.values()) for record in own]
    return Demonstrations(
        folder=folder,
        records=tuple(record for _, record in records),
        task_index=tuple(index for index, _ in records),
        actions=_load(folder / "actions.npy"),
        observed_at=_load(folder / "observed_at.npy"),
        observations={name: _load(_observation_file(folder, name)) for name in observation_names(spec)},
        attempts=facts["attempts"],
        env_steps=facts["env_steps"],
    )


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds no demonstrations ({FACTS} cannot be read): name the demonstrations/ of a run "
            "of python -m gipo_vla.sft"
        ) from error
    if facts.get("format") != FORMAT:
        raise UserError(f"{folder / FACTS} has format {facts.get('format')}, expected {FORMAT}: record anew")
    return facts


def _check(folder: Path, facts: dict[str, Any], spec: EnvironmentSpec) -> None:
    """Refuse demonstrations of other actions, or without what the policy's environment observes."""
    for name in ("action_size", "action_repeat"):
        if facts[name] != getattr(spec, name):
            raise UserError(
                f"{folder} was recorded with {name} {facts[name]}, the environment has "
                f"{getattr(spec, name)}: record anew, or choose the environment it was recorded in"
            )
    for name in observation_names(spec):
        wanted, found = asdict(spec.observation[name]), facts["observation"].get(name)
        if found is None or tuple(found["shape"]) != wanted["shape"]:
            what = "none" if found is None else f"of shape {tuple(found['shape'])}"
            raise UserError(
                f"{folder} was recorded with {name} {what}, the environment gives shape {wanted['shape']}: "
                "record anew, or set env.observations and env.camera to those of the recording"
            )


def _load(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): record anew") from error
    return array
