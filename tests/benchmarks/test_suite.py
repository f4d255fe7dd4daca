"""The suite for a GPU: what it does when parts fail, hang or find no time, and its dry run."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from gipo_envs.errors import UserError
from gipo_vla import benchmark
from gipo_vla.benchmarks import Options, suite
from gipo_vla.benchmarks.suite import process, session
from gipo_vla.benchmarks.suite.records import Line, Records, outcomes
from gipo_vla.benchmarks.suite.resuming import compared
from gipo_vla.benchmarks.suite.stages import PARTS, STAGES, Stage
from gipo_vla.benchmarks.suite.table import summary, table
from gipo_vla.benchmarks.suite.whole import shortened, uses
from gipo_vla.settings import runs
from gipo_vla.telemetry.console import console

FAKE = """
import json, subprocess, sys, time
stage, folder, ends, parts = sys.argv[1:]
file = open(folder + "/suite.jsonl", "a", buffering=1)
for part in parts.split(","):
    file.write(json.dumps({"part": "begun", "figures": part}) + "\\n")
    if part == "crashes":
        raise MemoryError("as I feared")
    if part == "hangs":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open(folder + "/child", "w").write(str(child.pid))
        print("waiting for the device", file=sys.stderr, flush=True)
        time.sleep(60)
    file.write(json.dumps({"part": part, "outcome": "measured", "reason": "", "seconds": 0.1}) + "\\n")
"""
"""In place of a stage's own process: its parts do as they are called."""


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``measured(minutes, stages)``: outcomes of a suite of such stages, and the parts begun in order."""
    monkeypatch.setattr(process, "COMMAND", [sys.executable, "-c", FAKE])
    records = Records(tmp_path / "suite.jsonl")

    def measure(seconds: float, *stages: Stage) -> tuple[dict[str, Line], list[str]]:
        parts = [part for stage in stages for part in stage.parts]
        monkeypatch.setattr(session, "STAGES", stages)
        monkeypatch.setattr(session, "PARTS", tuple(parts))
        before = len(records.read())
        session.measure(records, parts, time.monotonic() + seconds)
        lines = records.read()
        return outcomes(lines), [one["figures"] for one in lines[before:] if one["part"] == "begun"]

    return measure


def test_a_crash_costs_only_its_part(measured: Any) -> None:
    three = Stage("a", ("first", "crashes", "third"), 60, 0)
    found, begun = measured(60, three, Stage("b", ("last",), 60, 0))
    assert {part: one["outcome"] for part, one in found.items()} == {
        "first": "measured",
        "crashes": "failed",
        "third": "measured",
        "last": "measured",
    }
    assert found["crashes"]["reason"] == "exit status 1; it said last: MemoryError: as I feared"
    assert begun == ["first", "crashes", "third", "last"]
    # The same folder again: what is missing.
    assert measured(60, three)[1] == ["crashes"]


def test_a_hang_is_ended_at_its_box_with_what_it_started(measured: Any, tmp_path: Path) -> None:
    found, _ = measured(60, Stage("a", ("hangs", "behind"), 4.0, 0), Stage("b", ("last",), 60, 0))
    assert [found[part]["outcome"] for part in ("hangs", "behind")] == 2 * ["stopped at its box"]
    assert found["last"]["outcome"] == "measured"
    assert found["hangs"]["reason"].endswith("it said last: waiting for the device")
    child = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_the_budget_holds(measured: Any) -> None:
    """A stage for which too little time is left is left out; what computes beside keeps nobody waiting."""
    found, begun = measured(
        4.0,
        Stage("side", ("beside",), 60, 0, beside=True),
        Stage("a", ("hangs",), 60, 0),
        Stage("b", ("last",), 60, 1.0),
    )
    assert {part: one["outcome"] for part, one in found.items()} == {
        "beside": "measured",
        "hangs": "stopped at its box",
        "last": "left out",
    }
    assert "wants 1 s at least" in found["last"]["reason"]
    assert set(begun) == {"beside", "hangs"}


def test_the_boxes_fit_into_nine_minutes() -> None:
    alone = [stage for stage in STAGES if not stage.beside]
    assert sum(stage.box for stage in alone) <= 9 * 60
    assert all(stage.least < stage.box for stage in STAGES)
    assert len(set(PARTS)) == len(PARTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["size=tiny"], "out is missing"),
        (["size=tiny", "out={out}", "parts=flor"], "'flor' is none; nearest: floor"),
        (["out={out}"], "size=tiny makes a dry run"),
        (["size=huge", "out={out}"], "size is 'huge'"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite.group, "choose_device", lambda _: torch.device("cpu"))
    with pytest.raises(UserError, match=message):
        benchmark.main(["suite", *(text.format(out=tmp_path / "out") for text in arguments)])
    assert not (tmp_path / "out").exists()


def test_figures_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    other = runs.load("train", [*suite.SIZES["tiny"], "seed=7"])
    (tmp_path / "settings.yaml").write_text(runs.to_yaml(other))
    with pytest.raises(UserError, match="figures of other settings"):
        benchmark.main(["suite", "size=tiny", f"out={tmp_path}", "parts=floor"])


def test_short_iterations_use_data_as_often() -> None:
    settings = runs.load("train", list(suite.presets(Options())))
    assert uses(settings) == pytest.approx(2.0)
    short = shortened(settings)
    assert uses(short) == pytest.approx(2.0)
    assert short.learner.updates * short.learner.batch_segments < 100
    assert short.learner.value_only_updates == 0 and short.policy == settings.policy


def test_runs_are_compared(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "same", "other")]
    for folder, last in zip(folders, (0.5, 0.5, 0.25)):
        folder.mkdir()
        rows = [{"iteration": 1, "loss": 1.0}, {"iteration": 2, "loss": last}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert compared(folders[0], folders[1]) == {"equal": True, "iterations": 2}
    assert compared(folders[0], folders[2]) == {"equal": False, "first_iteration": 2, "differing": ["loss"]}


FLOOR = {"mean": 1e-3, "p99": 1e-2, "p999": 2e-2, "max": 5e-2}


def test_the_table_puts_figures_beside_goals_and_counts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 160)  # no cell is folded

    def of(part: str, key: int | None = None, **figures: Any) -> Line:
        return {"part": part, "key": key, "figures": figures}

    memory = {"device_bytes": 70 << 30, "device_bytes_planned": 71 << 30}
    about = {"micro_batch": 16, "learner_ms_per_sample": 20.0, "end_to_end_ms_per_sample": 25.0}
    speed = {"floor_after_updates": FLOOR, "updates_skipped": 0, **memory}
    lines = [
        of("counted", **about, act_ms_per_decision=5.0),
        of("learner", 16, rows=16, samples_per_second=33.3, **speed),
        of("learner", 64, rows=64, out_of_memory="CUDA out of memory"),
        of("act", 56, batch=56, of_the_run=True, decisions_per_second=150.0, **memory),
        {"part": "act", "outcome": "failed", "reason": "exit status 1", "seconds": 3.0},
    ]
    wanted = ["counted", "learner", "act", "copy"]
    console.print(table(lines, wanted, goals=True))
    rows = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().err.splitlines()]
    told = [cells[1:5] for cells in rows if len(cells) == 6]
    learner = next(one for one in told if one[0] == "learner, micro-batch of 16")
    assert learner[1].startswith("33.3 samples; 70.00 GiB") and learner[2:] == ["30", "50.0"]
    assert any("CUDA out of memory" in one[1] for one in told)
    act = next(one for one in told if one[0] == "act, batch of 56")
    assert act[3] == "200.0"
    assert ["act", "failed: exit status 1", "", ""] in told
    assert ["copy", "not begun:", "", ""] in told
    assert summary(lines, wanted, goals=False)["goals"] == {}
    assert summary(lines, wanted, goals=True)["parts"]["act"]["figures"][0]["batch"] == 56


def run(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    status = benchmark.main(
        ["suite", "size=tiny", f"out={folder}", "minutes=9", "learner.device=cpu", *arguments]
    )
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.medium
def test_the_dry_run_of_what_needs_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = run(capsys, tmp_path / "suite", "parts=floor,act")
    assert status == 0, found
    (floor,) = found["parts"]["floor"]["figures"]
    assert floor["device"] == "cpu" and 0 <= floor["max"] < 1e-4
    batches = [one["batch"] for one in found["parts"]["act"]["figures"]]
    assert batches == sorted(batches) and all(
        one["decisions_per_second"] > 0 for one in found["parts"]["act"]["figures"]
    )
    # Nothing is missing any more, so nothing is measured.
    lines = (tmp_path / "suite" / "suite.jsonl").read_bytes()
    assert run(capsys, tmp_path / "suite", "parts=act")[0] == 0
    assert (tmp_path / "suite" / "suite.jsonl").read_bytes() == lines


@pytest.mark.slow
def test_the_whole_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = run(capsys, tmp_path / "suite")
    assert status == 0, found
    figures = {part: one["figures"] for part, one in found["parts"].items()}
    assert list(figures) == list(PARTS)
    assert figures["doctor"][0]["checks"]["deepspeed"]["state"] == "ok"
    assert [one["rows"] for one in figures["learner"]][:3] == [8, 4, 16]
    assert figures["end_to_end"][0]["observations"] == "random pixels"
    assert figures["copy"][0]["synchronized_bytes"] > 0
    assert [(one["mode"], one["equal"]) for one in figures["resume"]] == [
        ("deterministic", True),
        ("default", True),
    ]
    assert figures["ranks"] == [{"way": "one host", "works": True, "iterations": 2, "updates": 4}]
