"""Workers that die, hang or raise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from gipo_envs import EnvironmentSettings, make_spec
from gipo_envs.errors import RunStoppedError
from gipo_vla.rollout.pool import FAULTS_IN_A_ROW, WorkerError, WorkerPool
from gipo_vla.rollout.process import WorkerLostError, WorkerProcess

MakePool = Callable[..., WorkerPool]


def start(pool: WorkerPool) -> None:
    pool.begin(pool.episodes.first(range(pool.envs)))  # type: ignore[attr-defined]


def actions(pool: WorkerPool, seed: int = 0) -> np.ndarray:
    shape = (pool.envs, pool.chunk, pool.spec.action_size)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that answers nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGCONT)


def step(pool: WorkerPool, seed: int) -> tuple[list[int], list[int]]:
    pool.dispatch(actions(pool, seed))
    arrival = pool.wait()
    return arrival.slots.tolist(), arrival.lost.tolist()


def assert_replaced(pool: WorkerPool, plain: WorkerPool, pids: list[int]) -> None:
    """Worker 0 of ``pool`` was replaced: its environments play their following episodes from the start, and
    those of worker 1 go on as in ``plain``, which nothing happened to."""
    assert pool.faults == 1
    assert pool.process_ids[0] != pids[0] and pool.process_ids[1] == pids[1]
    assert [plan.episode for plan in pool.plans[:2]] == [plan.episode + 1 for plan in plain.plans[:2]]
    assert pool.plans[2:] == plain.plans[2:]
    for seed in range(10, 14):
        assert step(pool, seed) == step(plain, seed) == ([0, 1, 2, 3], [])
        np.testing.assert_array_equal(
            pool.arrays["observation/state"][2:], plain.arrays["observation/state"][2:]
        )
    states, whole = pool.snapshot(), plain.snapshot()
    assert [len(state.actions) for state in states] == [4, 4, *(len(state.actions) for state in whole[2:])]


def test_a_killed_worker_is_replaced(make_pool: MakePool) -> None:
    pool, plain = make_pool(step_limit=30), make_pool(step_limit=30)
    for own in (pool, plain):
        start(own)
        for seed in range(3):
            step(own, seed)
    pids = pool.process_ids
    os.kill(pids[0], signal.SIGKILL)
    assert step(pool, 3) == ([2, 3], [0, 1])
    step(plain, 3)
    assert_replaced(pool, plain, pids)
    fresh = pool.snapshot()
    pool.restore(fresh)  # the replaced worker restores like any other


def test_a_worker_killed_while_it_steps_is_replaced(make_pool: MakePool) -> None:
    pool, plain = make_pool(step_limit=30), make_pool(step_limit=30)
    for own in (pool, plain):
        start(own)
    pids = pool.process_ids
    with stopped(pids[0]):  # so that it cannot have answered yet
        pool.dispatch(actions(pool, 3))
        os.kill(pids[0], signal.SIGKILL)
    arrival = pool.wait()
    assert (arrival.slots.tolist(), arrival.lost.tolist()) == ([2, 3], [0, 1])
    step(plain, 3)
    assert_replaced(pool, plain, pids)


def test_a_hanging_worker_is_replaced(make_pool: MakePool) -> None:
    pool, plain = make_pool(step_limit=30, timeout=1.0), make_pool(step_limit=30)
    for own in (pool, plain):
        start(own)
    pids = pool.process_ids
    with stopped(pids[0]):
        assert step(pool, 3) == ([2, 3], [0, 1])
        assert not psutil.pid_exists(pids[0])
    step(plain, 3)
    assert_replaced(pool, plain, pids)


def test_a_hanging_worker_is_found_while_others_answer(make_pool: MakePool) -> None:
    """``collect: ready`` must not serve the quick ones for ever."""
    pool = make_pool(step_limit=30, timeout=1.0)
    start(pool)
    pids = pool.process_ids
    with stopped(pids[0]):
        pool.dispatch(actions(pool))
        served, limit = 0, time.monotonic() + 20
        while True:
            arrival = pool.wait_ready()
            if len(arrival.lost):
                break
            assert arrival.slots.tolist() == [2, 3]
            assert time.monotonic() < limit, "the hanging worker is forgotten"
            served += 1
            pool.dispatch(actions(pool)[2:], arrival.slots)
    assert arrival.lost.tolist() == [0, 1] and served > 1
    pool.wait()
    assert step(pool, 0) == ([0, 1, 2, 3], [])


def test_the_time_between_two_requests_is_no_fault_of_the_worker(make_pool: MakePool) -> None:
    """The learner may take longer over a micro-batch than a simulator may over a step."""
    pool = make_pool(step_limit=30, timeout=0.5)
    start(pool)
    pool.dispatch(actions(pool))
    for process in pool._processes:  # done long ago, but nobody has asked yet
        assert process.connection.poll(30)
        process.deadline = 0.0
    arrival = pool.wait()
    assert arrival.slots.tolist() == [0, 1, 2, 3] and not len(arrival.lost) and pool.faults == 0


@pytest.mark.parametrize("how", ["begin", "restore"])
def test_a_worker_that_died_idle_is_replaced_where_nothing_is_lost(make_pool: MakePool, how: str) -> None:
    pool, plain = make_pool(step_limit=30), make_pool(step_limit=30)
    for own in (pool, plain):
        start(own)
        step(own, 0)
    states = pool.snapshot()
    victim = psutil.Process(pool.process_ids[1])
    victim.kill()
    if how == "restore":
        pool.restore(states)
    else:
        for own in (pool, plain):
            start(own)
    assert pool.faults == 1
    for seed in range(5, 9):
        assert step(pool, seed) == step(plain, seed) == ([0, 1, 2, 3], [])
        np.testing.assert_array_equal(pool.arrays["observation/state"], plain.arrays["observation/state"])
    assert pool.plans == plain.plans


def test_losing_a_worker_while_borrowed_gives_back_all_the_same(make_pool: MakePool) -> None:
    pool, plain = make_pool(step_limit=30), make_pool(step_limit=30)
    for own in (pool, plain):
        start(own)
        step(own, 0)
    with pool.borrowed(lambda plan: plan):
        start(pool)
        os.kill(pool.process_ids[0], signal.SIGKILL)
        assert step(pool, 1) == ([2, 3], [0, 1])
    for seed in range(5, 9):
        assert step(pool, seed) == step(plain, seed)
        np.testing.assert_array_equal(pool.arrays["observation/state"], plain.arrays["observation/state"])


def test_a_worker_that_cannot_be_replaced_is_told_in_one_line(make_pool: MakePool) -> None:
    pool = make_pool(timeout=0.5)
    start(pool)
    with (
        stopped(pool.process_ids[0]),
        pytest.raises(WorkerLostError, match=r"worker 0 died during 'modules', .*worker_timeout_s=0\.5 sec"),
    ):
        pool.modules()


def test_what_a_worker_raises_is_shown(make_pool: MakePool) -> None:
    pool = make_pool()
    start(pool)
    wrong = actions(pool)
    wrong[2] = np.nan
    pool.dispatch(wrong)
    with pytest.raises(
        WorkerError, match=r"worker 1 failed:\nTraceback(.|\n)*ValueError: actions must be finite"
    ):
        pool.wait()
    pool.close()


def test_a_worker_that_cannot_start_is_shown() -> None:
    pids = {child.pid for child in psutil.Process().children()}
    spec = make_spec(EnvironmentSettings("point_reach", "reach"))
    with pytest.raises(WorkerError, match=r"worker 0 failed:\nTraceback(.|\n)*unknown task 'no-such-task'"):
        WorkerPool(EnvironmentSettings("point_reach", "no-such-task"), spec, 2, 1, 1, lambda plan: plan)
    assert {child.pid for child in psutil.Process().children()} == pids, "the other workers are gone too"


def killed_at_the_start(monkeypatch: pytest.MonkeyPatch, worker: int, times: int) -> None:
    """Have the first so many processes of a worker die while they import their simulator."""
    begin, left = WorkerPool._start, [times]

    def begin_and_kill(self: WorkerPool, number: int) -> WorkerProcess:
        process = begin(self, number)
        if number == worker and left[0]:
            left[0] -= 1
            os.kill(process.pid, signal.SIGKILL)
        return process

    monkeypatch.setattr(WorkerPool, "_start", begin_and_kill)


def test_a_worker_killed_while_it_starts_is_tried_again(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at_the_start(monkeypatch, worker=1, times=2)
    pool = make_pool()
    assert pool.faults == 2
    start(pool)
    assert step(pool, 0) == ([0, 1, 2, 3], [])


def test_a_worker_killed_whenever_it_starts_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    killed_at_the_start(monkeypatch, worker=0, times=100)
    pids = {child.pid for child in psutil.Process().children()}
    settings = EnvironmentSettings("point_reach", "reach")
    with pytest.raises(RunStoppedError, match=r"^simulator worker 0 died .* 6 times in a row"):
        WorkerPool(settings, make_spec(settings), 2, 1, 1, lambda plan: plan)
    assert {child.pid for child in psutil.Process().children()} == pids, "the other workers are gone too"


def test_a_worker_that_keeps_dying_is_given_up(make_pool: MakePool) -> None:
    pool = make_pool(workers=1, envs_per_worker=1)
    start(pool)
    for _ in range(FAULTS_IN_A_ROW + 1):
        os.kill(pool.process_ids[0], signal.SIGKILL)
        assert step(pool, 0) == ([], [0])
    assert "times in a row" in pool.given_up[0]
    assert step(pool, 0) == ([], [0]), "its owner gets to the point where it can stop in good order"
    with pytest.raises(WorkerLostError, match="times in a row"):
        start(pool)


ORPHAN_MAKER = """
import sys, time
from gipo_envs import EnvironmentSettings, make_spec
from gipo_vla.rollout.episodes import TrainingEpisodes
from gipo_vla.rollout.pool import WorkerPool

settings = EnvironmentSettings("point_reach", "reach")
spec = make_spec(settings)
episodes = TrainingEpisodes(spec, 0, 2)
pool = WorkerPool(settings, spec, 2, 1, 1, episodes.following)
pool.begin(episodes.first(range(2)))
print(*pool.process_ids, flush=True)
sys.stdin.read()
"""


def test_workers_die_with_a_killed_parent() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN_MAKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None and parent.stdin is not None
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    os.kill(workers[0].pid, signal.SIGSTOP)  # even one that cannot notice anything itself
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not [worker for worker in alive if worker.status() != psutil.STATUS_ZOMBIE]


def test_workers_print_to_stderr() -> None:
    """stdout belongs to the JSON line of a command."""
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN_MAKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    pid = parent.stdout.readline().split()[0]
    try:
        assert Path(f"/proc/{pid}/fd/1").resolve() == Path(f"/proc/{pid}/fd/2").resolve()
    finally:
        parent.communicate("")
