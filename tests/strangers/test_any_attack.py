"""Whatever is changed in a folder that somebody hands on, a command works, or ends with one line.

``GIPO_ATTACKS=1000 pytest -m slow tests/strangers`` makes so many attacks on each kind of folder, others each
time; without it they are always the same.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.strangers.attacks import SECRET, attack, contents, fast_figures, outcome
from tests.strangers.victims import COMMANDS, VICTIMS, pretend


def check(draw: Any, name: str, base: Path, tmp: Path) -> None:
    """One attack on a copy of a folder, and one command that meets it."""
    shutil.rmtree(tmp, ignore_errors=True)
    folder, outside = tmp / name, tmp / "outside"
    shutil.copytree(base, folder)
    outside.mkdir()
    file = draw(st.sampled_from(VICTIMS[name].files(folder)))
    attack(draw, folder, file, outside)
    before = contents(outside)
    command = draw(st.sampled_from(VICTIMS[name].commands(file)))
    outcome(partial(COMMANDS[command], folder))
    assert contents(outside) == before, "something was written outside"
    if not before:  # nothing that is a link itself
        leaking = [path for path in tmp.rglob("*") if path.is_file() and path.stat().st_size < 2**28]
        assert not any(SECRET.encode() in path.read_bytes() for path in leaking)


def attack_often(count: int, name: str, base: Path, tmp: Path, same: bool = True) -> None:
    @settings(
        max_examples=count,
        derandomize=same,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def attacks(data: st.DataObject) -> None:
        check(data.draw, name, base, tmp)

    attacks()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Figures and jobs of sweeps that take no time."""
    monkeypatch.setenv("STRANGERS_SECRET", SECRET)
    monkeypatch.chdir(tmp_path)  # where a sweep looks for small data
    monkeypatch.setattr("gipo_vla.sweep.train_command", pretend)
    fast_figures(monkeypatch)


FEW = {"run": 12, "checkpoint": 3, "sweep": 5, "archive": 6, "policy": 2}


@pytest.mark.medium
@pytest.mark.parametrize("name", VICTIMS)
def test_an_attack_ends_with_one_line_or_the_command_works(
    victim: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    attack_often(FEW[name], name, victim(name), tmp_path / "attack")


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", VICTIMS)
def test_so_do_many_attacks(victim: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    asked = os.environ.get("GIPO_ATTACKS")
    attack_often(int(asked or 50), name, victim(name), tmp_path / "attack", same=asked is None)
