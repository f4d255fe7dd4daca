"""Suites, tasks, instructions and published initial states, converted once from hf-libero's files.

hf-libero keeps its task lists in a module that imports torch, and its initial states as pickles that it
loads with everything allowed. Here both are read without running anything of theirs, and kept as JSON and
npy in the user's cache, by version. ``scripts/setup.sh libero`` does it ahead of time; otherwise it happens
when first asked for, in a second.

Source: Liu et al. 2023, "LIBERO: Benchmarking Knowledge Transfer for Lifelong Robot Learning".
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gipo_envs.errors import UserError
from gipo_envs.libero import installation

STEP_LIMITS: Mapping[str, int] = MappingProxyType(
    {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
)
"""Suite -> env steps of the published evaluation (OpenVLA-OFT, ``run_libero_eval.py``), which count from
after the settle steps."""

GOAL_PREDICATES: Mapping[str, int] = MappingProxyType(
    {"libero_spatial": 1, "libero_object": 1, "libero_goal": 1, "libero_10": 3, "libero_90": 2}
)
"""Suite -> most predicates in the goal of one of its tasks; a test reads them all."""

PUBLISHED_STATES = 50
"""Initial states a task."""

_FORMAT = 1
"""Raised when what is written below changes."""


@dataclass(frozen=True)
class Task:
    """One task of a suite."""

    suite: str
    name: str
    instruction: str
    state_size: int
    """Length of a state: time, positions and velocities of all joints."""

    @property
    def definition(self) -> Path:
        """The BDDL file: objects, where they start, and the goal."""
        return installation.package_folder() / "bddl_files" / self.suite / f"{self.name}.bddl"


@cache
def tasks(suite: str) -> tuple[Task, ...]:
    """The tasks of a suite in the published order.

    Raises:
        UserError: LIBERO is not installed, or no such suite.
    """
    listed = json.loads((prepare() / "tasks.json").read_text())
    return tuple(Task(suite=suite, **entry) for entry in listed[suite])


def task(suite: str, name: str) -> Task:
    """The task of that name."""
    return next(task for task in tasks(suite) if task.name == name)


def published_states(task: Task) -> NDArray[np.float64]:
    """(50, ``state_size``) the states in which published evaluations begin."""
    states: NDArray[np.float64] = np.load(prepare() / task.suite / f"{task.name}.npy", mmap_mode="r")
    return states


@cache
def prepare() -> Path:
    """The folder of the converted files, converted now unless they were before."""
    folder = installation.cache_folder() / f"tasks-{_FORMAT}"
    if not (folder / "tasks.json").is_file():  # written last
        _convert(folder)
    return folder


def _convert(folder: Path) -> None:
    package = installation.package_folder()
    lists = _literal(package / "benchmark" / "libero_suite_task_map.py", "libero_task_map")
    catalogue: dict[str, list[dict[str, Any]]] = {suite: [] for suite in STEP_LIMITS}
    for suite, entries in catalogue.items():
        for name in lists[suite]:
            states = _read_states(package / "init_files" / suite / f"{name}.pruned_init")
            with io.BytesIO() as buffer:
                np.save(buffer, states)
                installation.write_atomically(folder / suite / f"{name}.npy", buffer.getvalue())
            entries.append({"name": name, "instruction": instruction(name), "state_size": states.shape[1]})
    installation.write_atomically(folder / "tasks.json", json.dumps(catalogue, indent=1).encode())


def instruction(name: str) -> str:
    """The instruction that is a task's name, as ``grab_language_from_filename`` of LIBERO reads it.

    Names of libero_10 and libero_90 begin with their scene: ``KITCHEN_SCENE3_turn_on_the_stove``.
    """
    words = name.split("_")
    if name[0].isupper():
        scene = next(index for index, word in enumerate(words) if word.startswith("SCENE"))
        words = words[scene + 1 :]
    return " ".join(words)


def _literal(path: Path, variable: str) -> Any:
    """The value of a module's variable that is a literal, without running the module."""
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == variable:
            return ast.literal_eval(statement.value)
    raise UserError(f"{path} has no {variable}: {installation.HOW_TO_INSTALL}")


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and nothing else."""

    _ALLOWED: Mapping[tuple[str, str], Any] = MappingProxyType(
        {
            ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a file of initial states")
        return self._ALLOWED[module, name]


def _read_states(path: Path) -> NDArray[np.float64]:
    """A file of initial states: an array in a pickle in the zip archive that ``torch.save`` writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(entry for entry in archive.namelist() if entry.endswith("/data.pkl"))
            states = _ArrayUnpickler(io.BytesIO(archive.read(name))).load()
    except (OSError, zipfile.BadZipFile, StopIteration, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read ({error}): {installation.HOW_TO_INSTALL}") from error
    if states.ndim != 2 or states.shape[0] != PUBLISHED_STATES:
        raise UserError(f"{path}: expected {PUBLISHED_STATES} states, got an array {states.shape}")
    converted: NDArray[np.float64] = states.astype(np.float64)
    return converted
