"""``python -m gipo_vla.sweep`` as a user meets it; the last tests train for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from gipo_vla import sweep
from gipo_vla.reporting import write_report
from gipo_vla.sweeping.process import JobProcess
from tests.conftest import TINY

PATIENCE = 900.0


def arguments(folder: Path, *overrides: str) -> list[str]:
    keys = {text.partition("=")[0] for text in overrides}
    tiny = [text for text in TINY if text.partition("=")[0] not in keys]
    return [*tiny, *overrides, f"sweep_dir={folder}"]


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gipo_vla.sweep", *arguments(folder, *overrides)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    """A sweep to its end; its line for programs."""
    process = start(folder, *overrides)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    told: dict[str, Any] = json.loads(out)
    return told


def launches(folder: Path) -> list[dict[str, Any]]:
    path = folder / "launches.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, "the sweep ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def iterations_done(run_folder: Path) -> int:
    path = run_folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


# -------------------------------------------------------------------------------------------------- manners


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweep"
    overrides = ("objective=gipo,ppo", "objective.sigma=0.5,1.0", "dry_run=true", "seconds_per_job=3600")
    assert sweep.main(arguments(folder, *overrides, "jobs=2")) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert (told["dry_run"], told["jobs"], told["left_env_steps"]) == (True, 3, 3 * 480)
    assert told["left_seconds"] == 7200
    for words in ("objective.sigma, for options without such a setting", "2.0 h here", "60 min on 100 slots"):
        assert words in " ".join(captured.err.split())
    for name in told["names"]:
        assert f"new       {name}" in captured.err
    assert not folder.exists()


def test_a_mistake_costs_one_line_and_no_job(tmp_path: Path) -> None:
    process = start(tmp_path / "sweep", "seed=0,1", "policy.bins=16,1")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.strip().splitlines() == [
        "error: policy.bins is 1: it must be at least 2 (in the job seed=0, policy.bins=1)"
    ]
    assert not (tmp_path / "sweep").exists()


def test_help_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--help"]) == 0
    assert "dry_run=true" in capsys.readouterr().out
    assert sweep.main(["--cfg", "sweep=paper_metaworld_small", "jobs=3"]) == 0
    shown = capsys.readouterr().out
    assert "jobs: 3" in shown
    assert "seed=22,64,99" in shown


def test_a_finished_sweep_needs_only_its_small_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing may be started: a job that is would fail."""
    from tests.sweeping.test_folders import pretend

    monkeypatch.chdir(tmp_path)
    planned = sweep.Sweep(sweep.load({"sweep_dir": str(tmp_path / "sweep")}, [*TINY, "seed=0,1"]))
    for job in planned.chosen:
        pretend(job, tmp_path / "docs" / "results" / "data" / "sweep" / job.name)
    monkeypatch.setattr(JobProcess, "__init__", lambda *_: pytest.fail("a job was started"))
    assert sweep.main(arguments(tmp_path / "sweep", "seed=0,1")) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["finished"], told["ran"], told["left"]) == (2, 0, 0)


# ------------------------------------------------------------------------------------------------ for real

GRID = (
    "replay.capacity=640,1280",
    "objective=gipo,ppo",
    "seed=0,1,2",
    "iterations=12",
    "checkpoint.every_iterations=2",
    "jobs=2",
)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sweep_killed_half_way_equals_an_unbroken_one(tmp_path: Path) -> None:
    broken, unbroken = tmp_path / "broken" / "sweep", tmp_path / "unbroken" / "sweep"
    first = start(broken, *GRID)

    def finished() -> list[str]:
        return sorted(path.parent.name for path in broken.glob("*/finished.json"))

    def under_way() -> list[dict[str, Any]]:
        ended = {row["job"] for row in launches(broken) if row["event"] == "ended"}
        return [row for row in launches(broken) if row["event"] == "started" and row["job"] not in ended]

    wait_for(lambda: len(finished()) >= 4, first)
    wait_for(lambda: any(4 <= iterations_done(broken / row["job"]) < 12 for row in under_way()), first)
    victims = under_way()
    first.kill()
    for row in victims:
        if psutil.pid_exists(row["pid"]):
            os.kill(row["pid"], signal.SIGKILL)
    first.communicate()
    done = {name: (broken / name / "finished.json").stat() for name in finished()}
    assert 4 <= len(done) < 12
    before = len(launches(broken))

    told = run(broken, *GRID)
    assert (told["jobs"], told["finished"], told["ran"]) == (12, 12, 12 - len(done))
    started_again = {row["job"] for row in launches(broken)[before:] if row["event"] == "started"}
    assert not started_again & done.keys()
    assert len(started_again) == 12 - len(done)
    for name, stat in done.items():
        now = (broken / name / "finished.json").stat()
        assert (now.st_mtime_ns, now.st_ino) == (stat.st_mtime_ns, stat.st_ino)
    resumed = [name for name in started_again if "resuming from" in (broken / name / "log.txt").read_text()]
    assert resumed

    assert run(unbroken, *GRID)["finished"] == 12
    for path in unbroken.glob("*/metrics.jsonl"):
        assert (broken / path.parent.name / path.name).read_bytes() == path.read_bytes()
    write_report([broken], tmp_path / "report_broken")
    write_report([unbroken], tmp_path / "report_unbroken")
    tables = sorted(path.name for path in (tmp_path / "report_unbroken").glob("*.csv"))
    assert {"configurations.csv", "runs.csv", "curves.csv"} <= set(tables)
    for name in tables:
        one, other = (
            (tmp_path / report / name).read_bytes() for report in ("report_broken", "report_unbroken")
        )
        assert one == other, name


@pytest.mark.slow
def test_an_interrupt_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    overrides = ("seed=0", "iterations=400", "jobs=1")
    first = start(folder, *overrides)
    wait_for(lambda: any(iterations_done(path) >= 3 for path in folder.glob("point_reach-*")), first)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=PATIENCE)
    assert first.returncode == 128 + signal.SIGINT, err
    told = json.loads(out)
    assert (told["stopped"], told["failed"]) == (1, [])
    (job,) = told["names"]
    reached = iterations_done(folder / job)
    assert 3 <= reached < 400
    assert (folder / job / "checkpoints" / "latest").exists()
    assert not any(psutil.pid_exists(row["pid"]) for row in launches(folder) if row["event"] == "started")

    second = start(folder, *overrides)
    wait_for(lambda: iterations_done(folder / job) > reached + 3, second)
    second.send_signal(signal.SIGTERM)
    second.communicate(timeout=PATIENCE)
    assert second.returncode == 128 + signal.SIGTERM
    assert "resuming from" in (folder / job / "log.txt").read_text()


@pytest.mark.slow
def test_under_torchrun_ranks_save_and_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    overrides = ("seed=0", "iterations=60", "launch=torchrun", "nproc_per_node=2", "jobs=1")
    first = start(folder, *overrides)
    wait_for(lambda: any(iterations_done(path) >= 3 for path in folder.glob("point_reach-*")), first)
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=PATIENCE)
    assert first.returncode == 128 + signal.SIGTERM, err
    (job,) = json.loads(out)["names"]
    assert (folder / job / "checkpoints" / "latest").exists()
    assert run(folder, *overrides)["finished"] == 1
    assert "resuming from" in (folder / job / "log.txt").read_text()
