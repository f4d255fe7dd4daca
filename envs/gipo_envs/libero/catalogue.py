"""Suites, tasks, instructions and published initial states, from hf-libero's files.

hf-libero keeps its task lists in a module that imports torch, and its initial states as pickles that it
loads with everything allowed. Here both are read without running anything of theirs, in milliseconds.

Source: Liu et al. 2023, "LIBERO: Benchmarking Knowledge Transfer for Lifelong Robot Learning".
"""

from __future__ import annotations

import ast
import io
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

STATE_SIZES: Mapping[str, int] = MappingProxyType(
    {"libero_spatial": 92, "libero_object": 110, "libero_goal": 79, "libero_10": 123, "libero_90": 123}
)
"""Suite -> length of the longest state of its tasks: time, positions and velocities of all joints; a test
reads them all."""

PUBLISHED_STATES = 50
"""Initial states a task."""


@dataclass(frozen=True)
class Task:
    """One task of a suite."""

    suite: str
    name: str

    @property
    def instruction(self) -> str:
        return instruction(self.name)

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
    module = installation.package_folder() / "benchmark" / "libero_suite_task_map.py"
    return tuple(Task(suite, name) for name in _literal(module, "libero_task_map")[suite])


def task(suite: str, name: str) -> Task:
    """The task of that name."""
    return next(task for task in tasks(suite) if task.name == name)


@cache
def published_states(task: Task) -> NDArray[np.float64]:
    """(50, F) the states in which published evaluations begin: time, positions and velocities of all joints.

    Raises:
        UserError: the file cannot be read.
    """
    return _read_states(
        installation.package_folder() / "init_files" / task.suite / f"{task.name}.pruned_init"
    )


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

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a file of initial states")
        return _ALLOWED[module, name]


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
}


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
