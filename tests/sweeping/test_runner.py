"""Running jobs, with jobs that only pretend to train."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from gipo_vla.distributed.children import telling_line
from gipo_vla.sweeping import folders
from gipo_vla.sweeping.process import JobProcess, train_command
from gipo_vla.sweeping.runner import Listener, Outcome, Runner, Status
from tests.sweeping.conftest import MakeSweep, fake_command


class Watcher(Listener):
    """Does something when all of so many jobs have come to run their fake."""

    def __init__(self, count: int, act: Callable[[], object]) -> None:
        self.count, self.act, self.done = count, act, False
        self.most = 0
        self.said: list[str] = []

    def tick(self, running: Sequence[JobProcess]) -> None:
        self.most = max(self.most, len(running))
        ready = [process for process in running if (process.folder / "running").exists()]
        if not self.done and len(ready) >= self.count:
            self.done = True
            self.act()

    def say(self, line: str) -> None:
        self.said.append(line)


def statuses(outcomes: Sequence[Outcome]) -> list[str]:
    return [str(outcome.status) for outcome in outcomes]


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_failure_stops_nobody_and_is_reported(
    make_sweep: MakeSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = make_sweep("seed=0,1,2,3", "jobs=2")
    assert sweep.run(fake_command({1: "fail", 2: "vanish"})) == 1
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert (told["jobs"], told["ran"], told["finished"]) == (4, 4, 2)
    assert [one["problem"] for one in told["failed"]] == [
        "RuntimeError: the fake had to fail",
        "killed by SIGKILL (out of memory?)",
    ]
    assert captured.err.count("the fake had to fail") == 2  # its line of progress, and the table
    assert "[4/4]" in captured.err


def test_nothing_of_a_sweep_is_for_everybody_to_write(make_sweep: MakeSweep) -> None:
    before = os.umask(0)
    try:
        sweep = make_sweep("seed=0")
        assert sweep.run(fake_command({})) == 0
    finally:
        os.umask(before)
    found = [sweep.folder.path, *sweep.folder.path.rglob("*")]
    assert len(found) > 4
    assert not [path for path in found if path.stat().st_mode & stat.S_IWOTH]


def test_a_second_start_runs_only_what_is_left(
    make_sweep: MakeSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_sweep("seed=0,1,2", "jobs=3")
    assert first.run(fake_command({1: "fail"})) == 1
    again = make_sweep("seed=0,1,2,3", "jobs=3")
    assert [job.settings.seed for job in again.left] == [1, 3]
    assert again.run(fake_command({})) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["ran"], told["finished"], told["failed"]) == (2, 4, [])
    launches = [json.loads(line) for line in (again.folder.path / "launches.jsonl").read_text().splitlines()]
    started = [row["job"] for row in launches if row["event"] == "started"]
    assert len(started) == 5
    assert {name for name in started if started.count(name) == 2} == {again.chosen[1].name}


def test_only_so_many_run_at_once(make_sweep: MakeSweep) -> None:
    sweep = make_sweep("seed=0,1,2,3,4")
    watcher = Watcher(99, lambda: None)
    runner = Runner(sweep.folder, 2, fake_command({0: "pair", 1: "pair"}), listener=watcher)
    assert set(statuses(runner.run(sweep.chosen))) == {"finished"}
    assert watcher.most == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_has_jobs_save_and_leave(make_sweep: MakeSweep, number: signal.Signals) -> None:
    sweep = make_sweep("seed=0,1,2")
    handler = signal.getsignal(number)
    watcher = Watcher(2, lambda: os.kill(os.getpid(), number))
    runner = Runner(sweep.folder, 2, fake_command({0: "forever", 1: "forever"}), listener=watcher)
    outcomes = runner.run(sweep.chosen)
    assert statuses(outcomes) == ["stopped", "stopped", "not started"]
    assert all((sweep.folder.run(job).path / "saved").exists() for job in sweep.chosen[:2])
    assert runner.asked_by == number
    assert signal.getsignal(number) == handler


def test_the_exit_status_names_the_signal(make_sweep: MakeSweep, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = make_sweep("seed=0", "jobs=1")
    command = fake_command({0: "quick"})

    def signal_first(job: folders.Job, folder: Path) -> list[str]:
        os.kill(os.getpid(), signal.SIGTERM)
        return command(job, folder)

    assert sweep.run(signal_first) == 128 + signal.SIGTERM
    told = json.loads(capsys.readouterr().out)
    assert told["failed"] == []
    assert told["stopped"] + told["finished"] == 1


def test_a_second_interrupt_kills_the_whole_tree(make_sweep: MakeSweep) -> None:
    sweep = make_sweep("seed=0")
    path = sweep.folder.run(sweep.chosen[0]).path

    def interrupt_twice() -> None:
        while not (path / "child").exists() or not (path / "child").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    runner = Runner(sweep.folder, 1, fake_command({0: "deaf"}), listener=Watcher(1, interrupt_twice))
    assert statuses(runner.run(sweep.chosen)) == ["stopped"]
    assert gone(int((path / "child").read_text()))


def test_a_job_of_another_process_is_waited_for(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gipo_vla.sweeping.runner.BUSY_SECONDS", 0.05)
    sweep = make_sweep("seed=0,1")
    lock = folders.try_to_lock(sweep.folder.run(sweep.chosen[0]))
    assert lock is not None
    watcher = Watcher(0, lock.close)
    outcomes = Runner(sweep.folder, 1, fake_command({}), listener=watcher).run(sweep.chosen)
    assert statuses(outcomes) == ["finished", "finished"]
    assert watcher.said == [f"waiting for {sweep.chosen[0].name}, which another process is running"]


def test_what_another_process_finished_is_not_run(make_sweep: MakeSweep) -> None:
    sweep = make_sweep("seed=0")
    jobs = sweep.chosen
    assert sweep.run(fake_command({})) == 0
    (outcome,) = Runner(sweep.folder, 1, fake_command({0: "fail"})).run(jobs)
    assert (outcome.status, outcome.ran) == (Status.FINISHED, False)


def test_each_job_sees_its_own_gpu(make_sweep: MakeSweep) -> None:
    sweep = make_sweep("seed=0,1")
    runner = Runner(sweep.folder, 2, fake_command({}), gpus=["4", "6"])
    runner.run(sweep.chosen)
    logs = sorted((sweep.folder.run(job).path / "log.txt").read_text() for job in sweep.chosen)
    assert [log.split()[-1] for log in logs] == ["4", "6"]


def test_nobody_outlives_a_sweep_that_is_killed(make_sweep: MakeSweep, tmp_path: Path) -> None:
    """Forked, not started anew: what counts is what Linux does with children of a process that is gone."""
    sweep = make_sweep("seed=0,1")
    child = os.fork()
    if child == 0:
        try:
            Runner(sweep.folder, 2, fake_command({0: "forever", 1: "forever"})).run(sweep.chosen)
        finally:
            os._exit(0)
    paths = [sweep.folder.run(job).path for job in sweep.chosen]
    while not all((path / "running").exists() for path in paths):
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    launches = [json.loads(line) for line in (sweep.folder.path / "launches.jsonl").read_text().splitlines()]
    assert all(gone(row["pid"]) for row in launches)
    assert all((path / "saved").exists() for path in paths)


# -------------------------------------------------------------------------------------------------- commands


def test_the_command_of_a_job(make_sweep: MakeSweep) -> None:
    (job,) = make_sweep("seed=3").chosen
    plain = train_command(job, Path("sweeps/x/y"))
    assert plain[:3] == [sys.executable, "-m", "gipo_vla.train"]
    assert plain[-3:] == ["seed=3", "run_dir=sweeps/x/y", "resume=auto"]
    ranks = train_command(job, Path("sweeps/x/y"), torchrun_ranks=8)
    assert ranks[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=8"]
    assert ranks[5:] == plain[1:]


@pytest.mark.parametrize(
    "log, line",
    [
        ("", ""),
        ("one\ntwo\n\n", "two"),
        ("[rank0]: ValueError: no\n[rank0]: frame\nE1234 torch failed\n=====\n", "ValueError: no"),
        ("error: seed is -1\n", "error: seed is -1"),
        (
            "torch.OutOfMemoryError: CUDA\nraise ChildFailedError(\n"
            "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n=====",
            "torch.OutOfMemoryError: CUDA",
        ),
    ],
)
def test_the_line_that_tells_most(log: str, line: str) -> None:
    assert telling_line(log) == line
