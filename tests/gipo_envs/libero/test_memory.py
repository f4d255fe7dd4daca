"""What LIBERO keeps in memory: flat over resets, and bounded over tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from gipo_envs.libero import simulations
from gipo_envs.libero.environment import LiberoEnvironment
from tests.gipo_envs.libero.conftest import MakeLibero

pytestmark = [pytest.mark.medium, pytest.mark.usefixtures("libero_assets", "pictures")]


def _megabytes() -> float:
    return float(psutil.Process().memory_info().rss / 2**20)


@pytest.mark.slow
def test_300_resets_of_five_tasks(make_libero: MakeLibero) -> None:
    tasks = (0, 2, 5, 7, 8)
    environment = make_libero("libero_goal", tasks, ("images",))
    actions = np.zeros((2, 7), np.float32)

    def resets(keys: range) -> None:
        for key in keys:
            environment.reset(key, 0, key % len(tasks))
            environment.step_chunk(actions)

    def held() -> tuple[int, int]:
        return psutil.Process().num_fds(), psutil.Process().num_threads()

    resets(range(50))
    before, descriptors_and_threads = _megabytes(), held()
    resets(range(50, 350))
    print(f"{before:.1f} MB after 50 resets, {_megabytes():.1f} MB after 350")
    assert _megabytes() - before < 20
    assert held() == descriptors_and_threads


@pytest.mark.slow
def test_tasks_make_room(make_libero: MakeLibero, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulations, "TASKS_KEPT", 1)
    environment = make_libero("libero_goal", (0, 1, 7), ("images",))
    assert isinstance(environment, LiberoEnvironment)
    other = LiberoEnvironment(
        environment._settings, environment.spec, environment._tasks, environment._assets
    )
    other.reset(0, 0, task=2)
    in_use = other.simulation
    for number in range(4):
        environment.reset(0, 0, task=number % 2)
    before = _megabytes()
    for number in range(4):
        environment.reset(0, 0, task=number % 2)
    assert _megabytes() - before < 120  # one compiled task is about 230
    assert len(simulations._kept) <= 2
    other.step_chunk(np.zeros((1, 7), np.float32))  # what is in use stays
    assert other.simulation is in_use
    other.close()


def test_what_is_prepared_is_there(make_libero: MakeLibero, libero_assets: Path) -> None:
    environment = make_libero("libero_goal", (0, 1))
    assert isinstance(environment, LiberoEnvironment)
    environment.prepare(1)
    prepared = next(reversed(simulations._kept.values()))
    environment.reset(0, 0, task=1)
    assert environment.simulation is prepared
