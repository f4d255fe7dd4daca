"""The picture of a graph of states."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gipo_vla.reporting import graph_figures, write_report
from gipo_vla.telemetry.graphs import MOST, GraphFiles, newest_graph

RunMaker = Callable[..., Path]


def graph(solved: bool = True) -> dict[str, Any]:
    """a -> b -> SUCCESS, and a -> c -> c."""
    distances: list[int | None] = [2, 1, None] if solved else [None] * 3
    return {
        "iteration": 5,
        "episodes": 3,
        "axes": ["hand x", "hand z"],
        "start": 0,
        "nodes": [[0.1 * n, 0.05 * n, distance] for n, distance in enumerate(distances)],
        "edges": [[0, 1, 2], [0, 2, 1], [2, 2, 4], *([[1, -1, 2]] if solved else [])],
    }


def write(folder: Path, iteration: int, value: dict[str, Any]) -> None:
    GraphFiles(folder / "graphs", MOST * iteration).after(iteration, lambda: value)


@pytest.mark.parametrize("solved", [True, False])
def test_a_report_draws_it(make_run: RunMaker, tmp_path: Path, solved: bool) -> None:
    run = make_run(tmp_path / "run")
    write(run, 5, graph(solved))
    report = write_report([run])
    assert (run / "report/state_graph.png").stat().st_size > 5_000
    assert "state graph" in report.page.read_text()


def test_a_report_without_graphs_says_nothing_of_credit(make_run: RunMaker, tmp_path: Path) -> None:
    report = write_report([make_run(tmp_path / "run")])
    assert not (tmp_path / "run/report/state_graph.png").exists()
    assert "<h2>Credit</h2>" not in report.page.read_text()


def test_one_graph_for_each_configuration(make_run: RunMaker, tmp_path: Path) -> None:
    for objective in ("gipo", "ppo"):
        for seed in (0, 1):
            run = make_run(tmp_path / f"{objective}-{seed}", objective, seed=seed)
            write(run, 5, graph())
    write_report([tmp_path])
    assert (tmp_path / "report/state_graph.png").exists()


def test_a_point_is_drawn_too() -> None:
    """Nothing was ever left: one state, one loop; and one that succeeds at once."""
    lonely = graph() | {"nodes": [[0.2, 0.1, None]], "edges": [[0, 0, 3]]}
    at_once = graph() | {"nodes": [[0.2, 0.1, 1]], "edges": [[0, -1, 3]]}
    figure = graph_figures.draw([("", lonely), ("a", at_once)])
    assert len(figure.axes) == 3, "two graphs and a colour bar"


def test_files_are_few_and_asked_for_only_when_due(tmp_path: Path) -> None:
    asked = []

    def snapshot() -> dict[str, Any]:
        asked.append(True)
        return graph()

    files = GraphFiles(tmp_path / "graphs", 10)
    for iteration in range(1, 11):
        files.after(iteration, snapshot)
    assert [path.name for path in sorted((tmp_path / "graphs").iterdir())] == [
        "000003.json",
        "000006.json",
        "000009.json",
    ]
    assert len(asked) == 3
    nothing = GraphFiles(tmp_path / "nothing", 1)
    nothing.after(1, lambda: None)
    assert not (tmp_path / "nothing").exists()


def test_the_newest_with_a_path_to_success_is_shown(tmp_path: Path) -> None:
    assert newest_graph(tmp_path) is None
    folder = tmp_path / "graphs"
    folder.mkdir()
    for iteration, solved in ((1, True), (2, True), (3, False)):
        (folder / f"{iteration:06d}.json").write_text(json.dumps(graph(solved) | {"iteration": iteration}))
    (folder / "000004.json").write_text("{")
    shown = newest_graph(tmp_path)
    assert shown is not None and shown["iteration"] == 2
