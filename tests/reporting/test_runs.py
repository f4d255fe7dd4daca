"""Finding and reading run folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gipo_envs.errors import UserError
from gipo_vla.reporting import checks
from gipo_vla.reporting.archive import thin
from gipo_vla.reporting.runs import Run, flatten, read_run, read_runs


def test_runs_are_found_at_any_depth_and_named_by_their_path(
    tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    make_run(tmp_path / "sweep" / "deep" / "b")
    make_run(tmp_path / "sweep" / "a")
    runs, remarks = read_runs([tmp_path / "sweep"])
    assert [run.name for run in runs] == ["a", "deep/b"] and remarks == []


def test_a_run_folder_is_itself_the_run_and_nothing_inside_it_is_another(
    tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    run = make_run(tmp_path / "one")
    make_run(run / "checkpoints" / "copy")
    runs, _ = read_runs([run])
    assert [run.name for run in runs] == ["one"]


def test_a_run_named_twice_counts_once(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(tmp_path / "one")
    assert len(read_runs([tmp_path, run])[0]) == 1


def test_runs_of_one_name_in_two_folders_stay_apart(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    for folder in ("x", "y"):
        make_run(tmp_path / folder / "seed0")
    runs, _ = read_runs([tmp_path / "x", tmp_path / "y"])
    assert [run.name for run in runs] == ["seed0", "y/seed0"]


def test_metrics_alone_are_enough(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    folder = make_run(tmp_path / "one", evaluated=False)
    (folder / "config.yaml").unlink()
    run = read_run(folder)
    assert run is not None
    assert run.iterations == 20 and run.tasks == ("task",) and run.evaluation is None and not run.complete


@pytest.mark.parametrize(("task", "named"), [(8, ("8",)), ([8, "reach"], ("8", "reach"))])
def test_a_task_may_be_a_number(task: Any, named: tuple[str, ...]) -> None:
    assert checks.problem_of("config", {"env": {"task": task}}) is None
    run = Run("one", {}, [{"iteration": 1}], settings={"env": {"task": task}})
    assert run.tasks == named
    for no_task in (True, [], [[8]], 0.5):
        assert checks.problem_of("config", {"env": {"task": no_task}}) is not None


def test_small_data_without_finished_json_is_complete_when_all_iterations_are_there(
    tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    whole, cut = make_run(tmp_path / "whole"), make_run(tmp_path / "cut", iterations=7)
    assert [run.complete for run in (read_run(whole), read_run(cut)) if run] == [True, False]
    (cut / "finished.json").write_text("{}")
    run = read_run(cut)
    assert run is not None and run.complete


def test_a_last_line_that_was_cut_short_is_ignored(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    folder = make_run(tmp_path / "one")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 21, "env_')
    run = read_run(folder)
    assert run is not None and run.iterations == 20


def test_a_run_without_iterations_is_remarked_on_beside_others(
    tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    make_run(tmp_path / "good")
    (make_run(tmp_path / "new") / "metrics.jsonl").write_text("")
    runs, remarks = read_runs([tmp_path])
    assert [run.name for run in runs] == ["good"]
    assert remarks == ["new is left out: its metrics.jsonl holds no iteration yet"]


def test_mistakes_name_the_folder_and_the_problem(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"absent is no folder"):
        read_runs([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty contains no run"):
        read_runs([tmp_path / "empty"])
    new = make_run(tmp_path / "new")
    (new / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"metrics\.jsonl of new is empty"):
        read_runs([new])
    (new / "metrics.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(UserError, match="has no iteration and env_steps"):
        read_runs([new])
    broken = make_run(tmp_path / "broken")
    (broken / "config.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        read_runs([broken])


def test_tasks_of_a_run_on_several(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    for evaluated in (True, False):
        run = read_run(make_run(tmp_path / str(evaluated), task=["push", "lift"], evaluated=evaluated))
        assert run is not None and run.tasks == ("lift", "push")


def test_thin_keeps_the_ends_and_the_spread() -> None:
    rows = [{"iteration": index} for index in range(101)]
    assert [row["iteration"] for row in thin(rows, 5)] == [0, 25, 50, 75, 100]
    assert thin(rows, 200) == rows


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}) == {"a.b": 1, "a.c.d": "[1, 2]", "e": None}


def test_what_a_sweep_varied_is_read_from_its_list_of_jobs(
    tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    """A job is found by the digest at the end of its name, as its folder may have older words."""
    make_run(tmp_path / "older-words-0123456789")
    make_run(tmp_path / "by_hand")
    jobs = [{"name": "words-0123456789", "overrides": ["seed=0", "objective=gipo"]}]
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    runs, _ = read_runs([tmp_path])
    assert {run.name: run.overrides for run in runs} == {
        "by_hand": None,
        "older-words-0123456789": ("seed=0", "objective=gipo"),
    }
