"""What the page on credit assignment says of IGPO's scorers is what the data kept beside it gives."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from scipy import stats

from gipo_vla.reporting.runs import read_runs
from gipo_vla.reporting.summary import task_scores
from tests.docs.pages import ROOT

RESULTS = ROOT / "docs" / "results"


def test_the_scorers() -> None:
    page = (RESULTS / "metaworld_sparse" / "README.md").read_text().splitlines()
    scores: dict[str, dict[int, float]] = defaultdict(dict)
    for run in read_runs([RESULTS / "data" / "metaworld_sparse_scorers"])[0]:
        (value,) = task_scores(run, "evaluation", "sampled.success_once").values()
        name = str(run.config["credit.name"])
        if name == "information_gain":
            name += f", {run.config['credit.scorer.name']}"
        scores[name][run.seed] = value
    assert len(scores) == 3 and all(sorted(own) == [1, 2, 3] for own in scores.values())
    group = np.array([scores["group"][seed] for seed in (1, 2, 3)])
    for name, own in scores.items():
        values = np.array([own[seed] for seed in (1, 2, 3)])
        cells = [name, ", ".join(f"{value:.2f}" for value in values), f"{values.mean():.2f}"]
        if name != "group":
            test = stats.ttest_rel(values, group)
            low, high = test.confidence_interval()
            cells.append(f"{np.mean(values - group):+.2f} ({low:+.2f} .. {high:+.2f})")
        else:
            cells.append("")
        told = f"| {' | '.join(cells)} |".replace("|  |", "| |")
        assert told in page, told
