"""Sweeps over tiny settings, and jobs that only pretend to train."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gipo_vla import config
from gipo_vla.sweep import Sweep
from gipo_vla.sweeping.jobs import Job
from gipo_vla.sweeping.process import Command
from gipo_vla.sweeping.settings import load, split

MakeSweep = Callable[..., Sweep]
FAKE = Path(__file__).parent / "fake_train.py"


@pytest.fixture
def make_sweep(tmp_path: Path, tiny_overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> MakeSweep:
    """``make_sweep("seed=0,1", "jobs=2")``: tiny runs, in ``tmp_path / "sweep"`` unless said otherwise."""
    monkeypatch.chdir(tmp_path)

    def make(*arguments: str) -> Sweep:
        own, overrides = split(arguments)
        given = {text.partition("=")[0] for text in overrides}
        tiny = [text for text in tiny_overrides if text.partition("=")[0] not in given]
        own.setdefault("sweep_dir", str(tmp_path / "sweep"))
        return Sweep(load(own, [*tiny, *overrides]))

    return make


def fake_command(modes: Mapping[int, str]) -> Command:
    """Jobs that pretend: each seed in its mode, else ``quick``."""

    def command(job: Job, folder: Path) -> list[str]:
        mode = modes.get(job.settings.seed, "quick")
        return [sys.executable, str(FAKE), str(folder), config.digest(job.settings), mode]

    return command
