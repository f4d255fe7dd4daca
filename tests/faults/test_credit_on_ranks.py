"""Credits over groups on two ranks: each sees groups of its own, and together they train one scorer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

GROUPS = ("rollout.group_size=4", "env.reward=sparse", "env.end_on_success=true", "iterations=6")
CREDITS = {
    "graph": ("credit=graph", "credit.structure=replay"),
    "gain": ("credit=information_gain", "credit.refresh_every=2", "credit.base=gae"),
}


@pytest.mark.slow
@pytest.mark.parametrize("credit", CREDITS)
def test_two_ranks_stopped_and_continued(
    launch: Callable[..., Any], going_on: Callable[..., Any], tmp_path: Path, credit: str
) -> None:
    own = (*CREDITS[credit], *GROUPS)
    straight = launch(*own, ranks=2, folder=tmp_path / "straight")
    straight.wait()
    halves = launch(*own, "stop_after=3", ranks=2, folder=tmp_path / "halves")
    halves.wait()
    continued = going_on(halves, ranks=2)
    metrics = [(run.folder / "metrics.jsonl").read_bytes() for run in (straight, continued)]
    assert metrics[0] == metrics[1]
    rows = [json.loads(line) for line in metrics[0].splitlines()]
    told = [name for name in rows[-1] if name.startswith("credit/")]
    assert any(row[name] is not None for row in rows for name in told)
    if credit == "gain":
        (last,) = continued.folder.glob("checkpoints/000006-*")
        states = [load_file(last / f"rank-0000{rank}" / "credit.safetensors") for rank in (0, 1)]
        shared = [name for name in states[0] if "/network/" in name or name.endswith(("/mean", "/std"))]
        assert all((states[0][name] == states[1][name]).all() for name in shared)
        if rows[-1]["credit/scorer_version"]:
            assert len(shared) == 8
