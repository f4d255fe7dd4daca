"""The examples that are programs of their own."""

from __future__ import annotations

import re
from pathlib import Path

import imageio
import pytest

from gipo_vla.train import resolve, train
from tests.examples.conftest import ROOT, Example, run


def test_the_minimal_run_fits_a_page_of_reading() -> None:
    assert len((ROOT / "examples/minimal_gipo.py").read_text().splitlines()) <= 300


@pytest.mark.medium
def test_the_minimal_run_learns() -> None:
    done = run("examples/minimal_gipo.py")
    assert done.returncode == 0, done.stderr
    told = re.search(r"first \d+ episodes ([\d.]+), of the last \d+ ([\d.]+)", done.stdout)
    assert told, done.stdout
    first, last = map(float, told.groups())
    assert first < 0.3 and last > 0.9


def test_the_minimal_run_is_reproducible(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("minimal_gipo")
    monkeypatch.setattr(module, "ITERATIONS", 5)
    monkeypatch.setattr(module, "ENVIRONMENTS", 8)
    spreads: list[list[float]] = []
    update = module.Learner.update

    def recorded(self: object, batch: object) -> float:
        spreads[-1].append(update(self, batch))
        return spreads[-1][-1]

    monkeypatch.setattr(module.Learner, "update", recorded)
    results = []
    for _ in range(2):
        spreads.append([])
        results.append(module.main())
    assert results[0] == results[1] and spreads[0] == spreads[1]
    assert len(spreads[0]) == 5 * module.UPDATES


def test_the_loss_trains_in_another_loop(example: Example) -> None:
    module = example("own_trainer")
    before, after = module.main()
    assert before < 0.4 and after > 0.9
    assert module.main() == (before, after)


@pytest.mark.medium
def test_a_policy_is_loaded_and_filmed(tiny_overrides: tuple[str, ...], tmp_path: Path) -> None:
    train(resolve([*tiny_overrides, f"run_dir={tmp_path / 'run'}"]))
    done = run("examples/use_a_policy.py", str(tmp_path / "run"), str(tmp_path / "points.mp4"))
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"episode \d: (success|no success)", done.stdout)) == 5
    frames = imageio.mimread(tmp_path / "points.mp4", memtest=False)
    assert len(frames) == 5 * 40 and frames[0].shape == (288, 384, 3)
    refused = run("examples/use_a_policy.py", str(tmp_path / "nowhere"), str(tmp_path / "points.mp4"))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "nowhere" in refused.stderr
