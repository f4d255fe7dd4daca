"""The soak's parts, and the whole of it over a program that behaves as a run does, in milliseconds."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from gipo_envs.errors import UserError
from gipo_vla import benchmark
from gipo_vla.benchmarks.soak import judgement, machine, schedule
from gipo_vla.benchmarks.soak.damage import damage, damaged
from gipo_vla.benchmarks.soak.faults import ACTS, caught
from gipo_vla.benchmarks.soak.kinds import KINDS, Kind
from gipo_vla.benchmarks.soak.processes import MARK, gone, in_role, kill_all, marked, stopped, until
from gipo_vla.benchmarks.soak.records import Records, summary, table
from gipo_vla.benchmarks.soak.schedule import DAMAGES, Fault, Traits
from gipo_vla.checkpoint import folder as folders
from gipo_vla.telemetry.console import console

PLAIN, HARD = Traits(False, False), Traits(True, True)
Make = Callable[..., Path]


# ----------------------------------------------------------------------------------------------- schedule


def drawn(seed: int = 0, run: int = 0, count: int = 200, own: Traits = PLAIN) -> list[Fault]:
    every = schedule.faults(seed, run, KINDS["mlp"], own, 2.0, clocks=True)
    return list(itertools.islice(every, count))


def test_seed_and_run_decide_every_fault() -> None:
    assert drawn() == drawn()
    assert drawn() != drawn(seed=1) and drawn() != drawn(run=1)
    both = [schedule.traits(0, run, KINDS["mlp"], True) for run in range(60)]
    assert both == [schedule.traits(0, run, KINDS["mlp"], True) for run in range(60)]
    assert {one.loses_workers for one in both} == {one.small_disk for one in both} == {True, False}
    assert not any(schedule.traits(0, run, KINDS["mlp"], False).small_disk for run in range(60))


def test_gaps_are_exponential() -> None:
    gaps = np.array([fault.gap for fault in drawn(seed=1, count=20000)])
    assert gaps.mean() == pytest.approx(2.0, rel=0.03)
    assert gaps.std() == pytest.approx(2.0, rel=0.03)
    assert np.median(gaps) == pytest.approx(2.0 * np.log(2), rel=0.03)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize("own", [PLAIN, HARD])
def test_only_runs_that_may_lose_workers_or_fill_disks_do(kind: Kind, own: Traits) -> None:
    choices = schedule.menu(kind, own)
    assert {act for act, _ in choices} <= set(ACTS)
    assert {role for _, role in choices} == {*kind.roles, "worker"}
    lost = {("killed", "worker"), ("hung", "worker"), ("killed while a worker is replaced", kind.roles[-1])}
    assert lost <= set(choices) if own.loses_workers else not lost & set(choices)
    assert any("disk" in act for act, _ in choices) == own.small_disk
    every = {fault.act for fault in drawn(own=own, count=1000)}
    assert every == {act for act, _ in schedule.menu(KINDS["mlp"], own)}, "all of them come"


# ---------------------------------------------------------------------------------------------- witnesses


@pytest.fixture
def sleeper() -> Iterator[psutil.Popen]:
    process = psutil.Popen(
        [sys.executable, "-c", "input()", "gipo_vla.train"], stdin=subprocess.PIPE, env={MARK: "test/1"}
    )
    yield process
    process.kill()
    process.wait()


def test_processes_are_found_by_mark_and_role(sleeper: psutil.Popen) -> None:
    assert until(lambda: [one.pid for one in in_role("test/1", "trainer")] == [sleeper.pid], 10)
    assert not in_role("test/1", "worker") and not in_role("test/2", "trainer")
    assert not gone(sleeper) and not stopped(sleeper)
    sleeper.suspend()
    assert until(lambda: stopped(sleeper), 10)
    (told,) = kill_all("test/")
    assert "gipo_vla.train" in told
    assert until(lambda: gone(sleeper), 10), "a zombie is gone, too"
    assert not marked("test/")


def test_a_process_is_caught_only_while_it_happens(
    sleeper: psutil.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, True, False, True, True])
    assert caught(sleeper, lambda: next(answers))
    assert stopped(sleeper), "over when it stood still the first time, under way the second"
    sleeper.resume()
    monkeypatch.setattr("gipo_vla.benchmarks.soak.faults.PATIENCE", 0.05)
    assert not caught(sleeper, lambda: False)
    assert not stopped(sleeper)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Two checkpoints of two files."""
    for number in (1, 2):
        part = folders.prepare(tmp_path / "checkpoints", f"{number:06d}-{number:07d}")
        (part / "rank").mkdir()
        files = {"state.json": b'{"x": 1}', "rank/data.npy": bytes(range(200)), "empty": b""}
        for name, content in files.items():
            (part / name).write_bytes(content)
        records = {name: folders.record(part / name) for name in files}
        folders.seal(tmp_path / "checkpoints", f"{number:06d}-{number:07d}", records)
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_counts_when_the_resume_names_it(checkpoints: Path, tmp_path: Path, how: str) -> None:
    log = tmp_path / "log.txt"
    log.write_text("warning: passed over a damaged checkpoint: /x/000002-0000002/old is missing\n")
    done = damage(tmp_path, log, how, np.random.default_rng(3))
    assert done is not None and done.checkpoint == "000002-0000002"
    assert not done.found(), "lines of launches before do not count"
    chosen, (line,) = folders.newest_valid(checkpoints)
    assert chosen.name == "000001-0000001"
    with log.open("a") as file:
        file.write(f"warning: passed over a damaged checkpoint: {line}\n")
    assert line in done.found() and not done.used()
    with log.open("a") as file:
        file.write(f"resuming from {checkpoints}/000002-0000002\n")
    assert done.used()


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("content", [b"a", bytes(50), bytes(range(100))])
def test_damage_always_changes_a_file(how: str, content: bytes) -> None:
    for seed in range(20):
        assert damaged(content, how, np.random.default_rng(seed)) != content


def test_the_only_checkpoint_is_left_alone(checkpoints: Path, tmp_path: Path) -> None:
    folders.prune(checkpoints, 1)
    assert damage(tmp_path, tmp_path / "log.txt", "torn", np.random.default_rng(0)) is None


@pytest.mark.skipif(not machine.has_disks(), reason="may not mount a small disk")
def test_a_small_disk_is_filled_to_the_last_byte_and_goes_with_its_keeper(tmp_path: Path) -> None:
    disk = machine.SmallDisk(tmp_path / "disk")
    try:
        assert disk.free > 64 * 2**20
        command = [*disk.prefix, "sh", "-c", f"echo here > {disk.inside}/$0"]
        subprocess.run([*command, "a"], check=True)
        assert (disk.outside / "a").read_text() == "here\n" and not list(disk.inside.iterdir())
        disk.fill()
        assert disk.free == 0
        assert subprocess.run([*command, "b"], stderr=subprocess.DEVNULL, check=False).returncode
        disk.make_room()
        subprocess.run([*command, "b"], check=True)
    finally:
        disk.close()
    assert not disk.outside.exists()


@pytest.mark.skipif(not machine.has_clocks(), reason="may not have a clock")
def test_a_clock_is_read_from_the_process_that_has_it() -> None:
    command = [*machine.clock_prefix(12345), sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert until(lambda: machine.clock_of(process.pid) == 12345, 10)
    assert machine.clock_prefix(0) == [] and machine.clock_of(process.pid) == 0


# ---------------------------------------------------------------------------------------------- judgement


@pytest.fixture
def make_run(tmp_path: Path) -> Make:
    """``make_run(name, iterations=..., faults=..., success=...)``: what a finished run leaves."""

    def make(name: str, iterations: Any = (1, 2, 3), faults: int = 0, success: float = 0.5) -> Path:
        run = tmp_path / name
        run.mkdir()
        rows = [
            {"iteration": number, "env_steps": 0, "rollout/worker_faults": faults} for number in iterations
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run / "evaluation.json").write_text(json.dumps({"success_once": success, "episodes": 32}))
        (run / "finished.json").write_text("{}")
        return run

    return make


def test_a_run_like_its_reference_has_lost_nothing(make_run: Make) -> None:
    run = make_run("run")
    (run / ".lock").touch()
    assert judgement.problems_of(run, make_run("reference"), 3, None) + judgement.leftovers(run) == []


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda run: (run / "finished.json").unlink(), "finished.json is missing"),
        (lambda run: (run / "evaluation.json").write_text('{"success_once": 1}'), "evaluation.json is not"),
        (lambda run: (run / ".x.tmp").touch(), ".x.tmp was left behind"),
        (lambda run: (run / "checkpoints/.partial-000001").mkdir(parents=True), "was left behind"),
        (lambda run: (run / "checkpoints/damaged-000001").mkdir(parents=True), "was left behind"),
        (lambda run: (run / "metrics.jsonl").chmod(0o666), "metrics.jsonl is for everybody"),
    ],
)
def test_what_was_lost_is_named(make_run: Make, spoil: Callable[[Path], object], told: str) -> None:
    run, reference = make_run("run"), make_run("reference")
    spoil(run)
    (problem,) = judgement.problems_of(run, reference, 3, None) + judgement.leftovers(run)
    assert told in problem


@pytest.mark.parametrize("iterations", [(1, 2), (1, 2, 2, 3), (1, 3, 2), (1, 2, 3, 4)])
def test_lines_that_are_doubled_or_missing(make_run: Make, iterations: tuple[int, ...]) -> None:
    first, second = judgement.problems_of(make_run("run", iterations), make_run("reference"), 3, None)
    assert "instead of 1 to 3" in first and "metrics.jsonl is not" in second


def test_half_a_line_is_told(make_run: Make) -> None:
    run = make_run("run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration"')
    assert judgement.out_of_order(run, 3)


def test_a_run_that_lost_workers_is_held_to_the_seeds(make_run: Make) -> None:
    seeds = [make_run(f"seed{seed}", success=success) for seed, success in enumerate((0.5, 0.6, 0.5))]
    low, high = judgement.interval(json.loads((seed / "evaluation.json").read_text()) for seed in seeds)
    # Wilson's interval for 16 of 32 at 99.9 % by hand: z = 3.2905.
    z = 3.2905
    centre, half = 0.5, z * (0.25 / 32 + z**2 / (4 * 32**2)) ** 0.5 / (1 + z**2 / 32)
    assert low == pytest.approx(centre - half, abs=1e-3) and high > centre + half
    alike, far = make_run("alike", faults=2, success=0.75), make_run("far", faults=2, success=0.0)
    assert judgement.problems_of(alike, seeds[0], 3, seeds) == []
    (problem,) = judgement.problems_of(far, seeds[0], 3, seeds)
    assert "success 0.000 is outside" in problem
    (problem,) = judgement.problems_of(alike, seeds[0], 3, None)
    assert "nobody had killed" in problem


# -------------------------------------------------------------------------------------- figures and table


def test_figures_are_counted_over_sessions(tmp_path: Path) -> None:
    records = Records(tmp_path / "faults.jsonl")
    assert records.next_run == 0
    own: dict[str, Any] = {"run": 0, "kind": "mlp"}
    records.add(**own, fault="trainer killed", witnessed="7 is gone")
    records.add(**own, fault="trainer killed", witnessed="")
    records.add(**own, finished=True, compared="bytes", problems=[], launches=3)
    again = Records(tmp_path / "faults.jsonl")
    assert again.next_run == 1
    more: dict[str, Any] = {"run": 1, "kind": "vla"}
    again.add(**more, fault="worker hung", witnessed="8 stood still")
    again.add(**more, finished=True, compared="interval", problems=["a line"], launches=2)
    figures = summary(again.all)
    assert (figures["faults_drawn"], figures["faults_witnessed"], figures["launches"]) == (3, 2, 5)
    assert (figures["runs"], figures["runs_equal"], figures["runs_within_interval"]) == (2, 1, 0)
    assert figures["lost"] == ["vla 1: a line"]
    with console.capture() as shown:
        console.print(table(again.all, ["mlp", "vla"]))
    lines = {line.split("│")[1].strip(): line for line in shown.get().splitlines() if "│" in line}
    assert lines["trainer killed"].count("1/2") == 2
    assert "0/1" in lines["runs with nothing lost"] and "1/2" in lines["runs with nothing lost"]


# ---------------------------------------------------------------------------------------------- the whole


@dataclass(frozen=True)
class Pretender(Kind):
    """A kind whose command is tests/benchmarks/soak/pretender.py."""

    words: tuple[str, ...] = ()

    def command(self, folder: Path, seed: int = 0, *more: str) -> list[str]:
        script = str(Path(__file__).with_name("pretender.py"))
        own = self.words if "reference" not in folder.parts else ()
        return [sys.executable, script, "gipo_vla.train", f"run_dir={folder}", *own]


def soak(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = benchmark.main(["soak", "kinds=mlp", "every=0.2", *arguments])
    return status, json.loads(capsys.readouterr().out)


def test_a_program_that_resumes_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "mlp", Pretender("", 40))
    monkeypatch.setattr("gipo_vla.benchmarks.soak.machine.has_clocks", lambda: False)
    monkeypatch.setattr("gipo_vla.benchmarks.soak.campaign.traits", lambda *_: PLAIN)
    monkeypatch.setattr("gipo_vla.benchmarks.soak.schedule.FREEZE_SECONDS", 0.05)
    status, figures = soak(capsys, "minutes=0.05", f"out={tmp_path}", "seed=3")
    assert figures["lost"] == [] and status == 0
    assert figures["runs"] == figures["runs_equal"] >= 1
    assert figures["faults_witnessed"] >= 3
    lines = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert sum(bool(line.get("witnessed")) for line in lines) == figures["faults_witnessed"]


def test_a_program_that_writes_a_line_twice_is_found_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "mlp", Pretender("", 40, words=("doubles",)))
    monkeypatch.setattr("gipo_vla.benchmarks.soak.machine.has_clocks", lambda: False)
    monkeypatch.setattr("gipo_vla.benchmarks.soak.campaign.traits", lambda *_: PLAIN)
    killing = [("killed while saving", "trainer")]
    monkeypatch.setattr("gipo_vla.benchmarks.soak.schedule.menu", lambda *_: killing)
    status, figures = soak(capsys, "minutes=0.03", f"out={tmp_path}", "jobs=1")
    assert status == 1
    assert any("instead of 1 to 40" in line for line in figures["lost"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["soak"], "out is missing"),
        (["soak", "out=x", "iterations=5"], "settings of their own"),
        (["soak", "out=x", "kinds=mlp,vlaa"], "'vlaa' is none; nearest: vla"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        benchmark.main(arguments)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_nothing_is_lost_in_three_minutes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gipo_vla.benchmark", "soak", f"out={tmp_path / 'soak'}", "minutes=3"]
    done = subprocess.run([*command, "kinds=mlp,ranks"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = json.loads(done.stdout)
    assert figures["runs"] == figures["runs_finished"] >= 2
    assert figures["faults_witnessed"] >= 5 and figures["lost"] == []


@pytest.mark.slow
def test_an_interrupted_soak_ends_its_runs_and_tells(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gipo_vla.benchmark", "soak", f"out={tmp_path / 'soak'}", "kinds=mlp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines = tmp_path / "soak" / "faults.jsonl"
        assert until(lambda: lines.exists() and lines.read_text(), 420)
        process.send_signal(signal.SIGINT)
        told, table_shown = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(told)["interrupted"] and "all faults" in table_shown
    every = psutil.process_iter(["cmdline"])
    assert not [one for one in every if str(tmp_path) in " ".join(one.info["cmdline"] or [])]
