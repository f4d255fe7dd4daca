"""The command and the files it writes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from gipo_envs.errors import UserError
from gipo_vla import report
from gipo_vla.reporting import write_report, write_run_report
from gipo_vla.reporting.page import Section, render
from gipo_vla.reporting.table import Table, to_html, write_csv

Maker = Callable[..., Path]

SWEEP_FILES = {
    "capacity_differences.csv",
    "configurations.csv",
    "curves.csv",
    "held_out.csv",
    "lag.csv",
    "paired_differences.csv",
    "runs.csv",
    "sigma_capacity.csv",
    "staleness_by_age.csv",
    "success_per_task.csv",
    "effective_sample_size.png",
    "fractions_by_age.png",
    "health.png",
    "lag.png",
    "lag_histogram.png",
    "learning_curves.png",
    "scores.png",
    "sigma_capacity.png",
    "staleness.png",
    "success_per_task.png",
    "report.html",
}


@pytest.fixture
def sweep(tmp_path: Path, make_run: Maker) -> Path:
    """Two objectives, two sigmas, two capacities, two tasks, two seeds."""
    folder = tmp_path / "sweep"
    for capacity, task, seed in product((1000, 20000), ("reach", "push"), (0, 1)):
        name = f"{capacity}-{task}-{seed}"
        for sigma in (0.2, 1.0):
            make_run(
                folder / f"gipo-{sigma}-{name}",
                "gipo",
                task,
                seed,
                success=0.6 + 0.1 * seed,
                lag=capacity / 800,
                changes={"replay.capacity": capacity, "objective.sigma": sigma},
            )
        make_run(
            folder / f"ppo-{name}",
            "ppo",
            task,
            seed,
            success=0.4,
            lag=capacity / 800,
            changes={"replay.capacity": capacity},
        )
    return folder


def test_report_of_a_sweep(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(sweep)]) == 0
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    values = json.loads(output)
    assert values["report"] == str(sweep / "report" / "report.html")
    assert (values["runs"], values["tasks"]) == (24, ["push", "reach"])
    assert values["varied"] == ["objective.name", "objective.sigma", "replay.capacity"]
    regimes = {row["configuration"]: row["regime"] for row in values["configurations"]}
    assert regimes["ppo, capacity 1,000"] == "not stale" and regimes["ppo, capacity 20,000"] == "stale"
    assert {path.name for path in (sweep / "report").iterdir()} == SWEEP_FILES
    page = (sweep / "report" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 10
    # Stands alone, and says nothing of the machine that it was made on.
    assert not re.search(r"<script|<link|https?://|src=\"(?!data:)|url\(", page)
    assert str(sweep.parent) not in page


def test_a_report_by_another_score(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(sweep), "score=sampled.mean_return"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["score"] == "sampled.mean_return (evaluation)"
    returns = {row["configuration"]: row["sampled.mean_return_iqm"] for row in values["configurations"]}
    assert returns["ppo, capacity 1,000"] == pytest.approx(40)
    assert {path.name for path in (sweep / "report").iterdir()} == SWEEP_FILES
    assert "Sampled return" in (sweep / "report" / "report.html").read_text()


def test_the_report_on_a_sweep_goes_by_the_sweeps_score(tmp_path: Path, make_run: Maker) -> None:
    for name, score in (("a", "sampled.mean_return"), ("b", "success_at_end")):
        make_run(tmp_path / name / "gipo", success=0.5)
        make_run(tmp_path / name / "ppo", "ppo", success=0.4)
        (tmp_path / name / "sweep.json").write_text(json.dumps({"score": score, "jobs": []}))
    made = write_report([tmp_path / "a"]).comparison
    assert (made.score, made.remarks) == ("sampled.mean_return", ())
    made = write_report([tmp_path / "a"], score="success_once").comparison
    assert made.score == "success_once"
    assert made.remarks == (
        "by score=success_once, though the sweep was started with score=sampled.mean_return",
    )
    with pytest.raises(UserError, match=r"with sampled\.mean_return and success_at_end: say score=NAME"):
        write_report([tmp_path / "a", tmp_path / "b"])


@pytest.mark.slow
def test_tables_depend_neither_on_the_order_nor_on_the_place_of_runs(sweep: Path, tmp_path: Path) -> None:
    first = write_report([sweep]).page.parent
    halves = [tmp_path / "halves" / name for name in ("y", "x")]
    for index, run in enumerate(sorted(path for path in sweep.iterdir() if path.name != "report")):
        shutil.copytree(run, halves[index % 2] / run.name)
    second = write_report(halves, tmp_path / "out").page.parent
    tables = sorted(path.name for path in first.glob("*.csv"))
    assert tables
    for name in tables:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_report_of_a_run_lies_beside_its_metrics(tmp_path: Path, make_run: Maker) -> None:
    run = make_run(tmp_path / "run")
    assert write_run_report(run) == run / "report.html"
    assert (run / "report" / "evaluation.csv").exists()
    assert "objective:" in (run / "report.html").read_text()


def test_tasks_that_were_trained_together_have_curves_of_their_own(tmp_path: Path, make_run: Maker) -> None:
    several = make_run(tmp_path / "several" / "run", task=["push", "reach", "turn"])
    assert (write_run_report(several).parent / "report" / "task_curves.png").exists()
    alone = make_run(tmp_path / "alone" / "run")
    assert not (write_run_report(alone).parent / "report" / "task_curves.png").exists()


def test_metrics_alone_make_a_report(tmp_path: Path, make_run: Maker) -> None:
    run = make_run(tmp_path / "run", iterations=1)
    for name in ("config.yaml", "evaluation.json"):
        (run / name).unlink()
    rows = [{"iteration": 1, "env_steps": 10, "success_once_recent": None}]
    (run / "metrics.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert "no run has ended" in write_run_report(run).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one run folder"),
        (["--fast", "."], "unknown option --fast"),
        (["absent"], "absent is no folder"),
        (["score=luck", "."], "score is .luck.: input should be .success_once., .success_at_end."),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        report.main(arguments)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, make_run: Maker) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another with out=PATH"):
        report.main([str(run), f"out={tmp_path / 'file'}"])


def test_a_mistake_is_one_line_and_exit_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gipo_vla.report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {tmp_path} contains no run: no folder in it holds a metrics.jsonl\n"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--help"]) == 0
    assert "python -m gipo_vla.report DIR" in capsys.readouterr().out


def test_text_is_escaped() -> None:
    table = Table("t", "T", ("a<b",), [["<script>"], [None], [0.5]])
    text = render("<title>", "a & b", ["x < y"], [Section("s", tables=[table])])
    assert "<script>" not in text and "&lt;title&gt;" in text and "a &amp; b" in text and "x &lt; y" in text


def test_table_faces(tmp_path: Path) -> None:
    table = Table("t", "T", ("name", "value"), [["a", 1 / 3], ["b", None], ["c, d", 12345]])
    assert write_csv(table, tmp_path).read_text() == 'name,value\na,0.333333\nb,\n"c, d",12345\n'
    page = to_html(table)
    assert "<td class=number>0.333</td>" in page and "12,345" in page and "–" in page
