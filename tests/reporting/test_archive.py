"""Small data of runs in archives."""

from __future__ import annotations

import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gipo_envs.errors import UserError
from gipo_vla import report
from gipo_vla.reporting import archive, write_report
from gipo_vla.reporting.runs import read_runs

Maker = Callable[..., Path]


def test_a_report_on_an_archive_is_that_on_its_folders(tmp_path: Path, make_run: Maker) -> None:
    folder = tmp_path / "study"
    for seed in (0, 1):
        make_run(folder / f"gipo-{seed}", "gipo", seed=seed, success=0.7 + 0.1 * seed)
        make_run(folder / f"ppo-{seed}", "ppo", seed=seed, success=0.5 - 0.04 * seed, lag=25.0)
    for run in folder.iterdir():
        (run / "finished.json").write_text("{}")
        evaluations = [{"env_steps": steps, "success_once": steps / 2000} for steps in (1000, 2000)]
        (run / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evaluations))
    write_report([folder], tmp_path / "loose")
    assert report.main(["pack", str(folder)]) == 0
    assert [path.name for path in folder.iterdir()] == ["runs-00.jsonl.xz"]
    write_report([folder], tmp_path / "packed")
    written = sorted(path.name for path in (tmp_path / "loose").iterdir())
    assert {"configurations.csv", "runs.csv", "curves.csv", "scores.png", "held_out_curves.png"} <= set(
        written
    )
    for name in written:
        assert (tmp_path / "loose" / name).read_bytes() == (tmp_path / "packed" / name).read_bytes(), name


def records(count: int, **values: Any) -> list[dict[str, Any]]:
    return [{"name": f"run{n:02d}", "metrics": {"iteration": [1]}, **values} for n in range(count)]


def test_equal_runs_give_equal_bytes_in_whatever_order_they_come(tmp_path: Path) -> None:
    runs = records(3)
    archive.add(tmp_path / "a", runs)
    for run in reversed(runs):
        archive.add(tmp_path / "b", [run])
    paths = [tmp_path / name / "runs-00.jsonl.xz" for name in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert [run["name"] for run in archive.read(paths[1])] == ["run00", "run01", "run02"]


def test_archives_are_divided_before_they_are_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "LARGEST_FILE", 150)
    archive.add(tmp_path, records(40))
    paths = archive.archives(tmp_path)
    assert len(paths) > 1 and all(path.stat().st_size <= 150 for path in paths)
    assert [run["name"] for run in archive.read_folder(tmp_path)] == [f"run{n:02d}" for n in range(40)]
    monkeypatch.undo()
    archive.add(tmp_path, [{"name": "run40", "metrics": {}}])
    assert [path.name for path in archive.archives(tmp_path)] == ["runs-00.jsonl.xz"]
    assert len(archive.read_folder(tmp_path)) == 41


def test_floats_keep_twelve_digits_and_everything_else_is_exact(tmp_path: Path) -> None:
    exact = {"iteration": [10**15 + 1, None], "rate": [0.1, 1e-8], "on": [True, False]}
    archive.add(tmp_path, [{"name": "a", "metrics": exact | {"third": [1 / 3, 2e15 / 3]}}])
    (kept,) = archive.read_folder(tmp_path)
    assert kept["metrics"] == exact | {"third": [0.333333333333, 666666666667000.0]}
    assert [type(value) for value in kept["metrics"]["iteration"]] == [int, type(None)]


def test_what_a_sweep_varied_goes_with_the_runs(tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path / "data" / "words-0123456789")
    jobs = [{"name": "other-words-0123456789", "overrides": ["seed=0", "objective=gipo"]}]
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    assert archive.pack(tmp_path / "data", tmp_path / "sweep.json") == 1
    ((run,), _) = read_runs([tmp_path / "data"])
    assert run.overrides == ("seed=0", "objective=gipo") and run.name == "words-0123456789"


def test_a_damaged_or_an_endless_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs-00.jsonl.xz"
    archive.add(tmp_path, records(3))
    whole = path.read_bytes()
    for damaged in (whole[:-20], b"no archive", lzma.compress(b'{"loss": 1}'), lzma.compress(b"[")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"runs-00.jsonl.xz cannot be read"):
            archive.read(path)
    path.write_bytes(lzma.compress(b" " * 5000))
    monkeypatch.setattr(archive, "LARGEST_TEXT", 4000)
    with pytest.raises(UserError, match="more than 4,000 bytes"):
        archive.read(path)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name a folder of run folders"):
        report.main(["pack", str(tmp_path / "absent")])
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match=r"sweep\.json cannot be read"):
        archive.pack(tmp_path)
    shutil.rmtree(tmp_path)
