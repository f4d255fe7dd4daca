"""The sizes at which these tests run: a few thousand weights in the default suite, 7.5 billion on request.

The 7B needs GIPO_FULL_SIZE: a folder for its files on a disk with room. Where that is set a machine that is
too small is an error, not a skip: whoever asks for these tests wants to know that they did not run.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from gipo_vla.policies.openvla_oft import Architecture
from gipo_vla.run.memory import GIB, peak_resident_bytes
from tests.full_size.published import write_random_checkpoint
from tests.learner import vla

FOLDER = os.environ.get("GIPO_FULL_SIZE")
WHOLE = Architecture()
PIXELS = int(os.environ.get("GIPO_FULL_SIZE_PIXELS", WHOLE.image_size))
"""Side of the images. 28 (4 patches instead of 256) makes a forward several times cheaper; of the weights,
only the position tables are then smaller."""
LAYERS = int(os.environ.get("GIPO_FULL_SIZE_LAYERS", WHOLE.layers))
"""Blocks of the language model: fewer are a rehearsal, which needs as much less of memory and disk."""
MEMORY, DISK = (5 + 15 * LAYERS / WHOLE.layers) * GIB, (10 + 40 * LAYERS / WHOLE.layers) * 10**9
"""Available memory and free disk that the 7B takes, 20 GiB and 50 GB: 17 GiB of weights, adapters and
optimiser, and what exporting holds beside them; a checkpoint, an export of it and checkpoints of runs."""
HOURS = 3 * 3600
"""For one test of the 7B on two cores that are also used by others."""

needs_folder = pytest.mark.skipif(
    FOLDER is None,
    reason="7B only on request: GIPO_FULL_SIZE=FOLDER (20 GiB of available memory, 50 GB of free disk)",
)
SEVEN_BILLION = pytest.param("7b", marks=[pytest.mark.slow, pytest.mark.timeout(HOURS), needs_folder])


@dataclass(frozen=True)
class Size:
    """A network and how to work with it."""

    name: str
    architecture: Architecture
    action_size: int
    shard_bytes: int
    chunk: int
    folder: Path
    """For large files."""

    @property
    def is_full(self) -> bool:
        return self.name == "7b"

    def call(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
        """What a function returns, and the peak of resident memory: the 7B in a process of its own, which
        gives all of it back. Called here the peak means nothing, and is 0."""
        if not self.is_full:
            return function(*arguments), 0
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, spawn, initializer=_two_threads) as executor:
            return executor.submit(_with_peak, function, *arguments).result()


def _two_threads() -> None:
    torch.set_num_threads(2)


def _with_peak(function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    return function(*arguments), peak_resident_bytes()


def fail_without(there: float, needed: float, what: str) -> None:
    """End a test where the machine lacks something, in one line."""
    if there < needed:
        pytest.fail(f"{there / GIB:.1f} GiB of {what}, and the 7B needs {needed / GIB:.1f}", pytrace=False)


def fail_without_memory() -> None:
    """To be called before each step that takes it: others may have begun to use the machine."""
    fail_without(psutil.virtual_memory().available, MEMORY, "available memory")


@pytest.fixture(scope="session", params=["tiny", SEVEN_BILLION])
def size(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Size]:
    if request.param == "tiny":
        folder = tmp_path_factory.mktemp("tiny")
        # Files do not record where a prompt ends: it is where the published vocabulary says.
        small = replace(vla.ARCHITECTURE, vocabulary=WHOLE.vocabulary, prompt_end=WHOLE.prompt_end)
        yield Size("tiny", small, 3, 200_000, 2, folder)
        return
    assert FOLDER is not None
    folder = Path(FOLDER).resolve() / "gipo-full-size"
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    fail_without(shutil.disk_usage(folder.parent).free, DISK, f"free disk at {folder.parent}")
    fail_without_memory()
    folder.mkdir()
    try:
        architecture = replace(WHOLE, image_size=PIXELS, layers=LAYERS)
        yield Size("7b", architecture, 2, 1_000_000_000, 8, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Published:
    folder: Path
    digest: str


@pytest.fixture(scope="session")
def published(size: Size) -> Published:
    """A checkpoint of random weights in the published layout."""
    folder = size.folder / "published"
    return Published(
        folder, write_random_checkpoint(folder, size.architecture, size.action_size, size.shard_bytes)
    )
