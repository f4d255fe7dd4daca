"""What the page on troubles says of returns far from 1 is what the data kept gives."""

from __future__ import annotations

from gipo_vla.reporting.archive import read_folder
from tests.docs.pages import ROOT

PAGE = " ".join((ROOT / "docs" / "troubleshooting.md").read_text().split())
DATA = ROOT / "docs" / "results" / "data"


def test_how_often_the_default_experiment_clips_the_gradient_of_its_value() -> None:
    runs = {run["config"]["seed"]: run for run in read_folder(DATA / "metaworld_button_press")}
    assert sorted(runs) == [0, 1, 2]
    assert all(run["config"]["learner"]["value_gradient_clip"] == 1 for run in runs.values())
    clipped = [sum(norm > 1 for norm in runs[seed]["metrics"]["gradient_norm/value"]) for seed in range(3)]
    assert "in {}, {} and {} of 100 iterations".format(*clipped) in PAGE
    greatest = [max(runs[seed]["metrics"]["value/target_mean"]) for seed in range(3)]
    assert "reaches {:.0f}, {:.0f} and {:.0f}".format(*greatest) in PAGE
