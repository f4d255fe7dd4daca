"""A pool of simulator processes over shared memory.

The parent knows everything that decides a simulator's state: the plan of the episode and the actions since
its reset. ``snapshot`` returns just that, ``restore`` replays it, and the state is exact for every
simulator. A worker that dies or hangs is replaced; its environments start new episodes.

Per vector step a worker gets one short message; actions, observations and rewards lie in shared memory.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
from gipo_envs import EnvironmentSettings, EnvironmentSpec
from numpy.typing import NDArray

from gipo_vla.rollout.episodes import EpisodePlan
from gipo_vla.rollout.shared_arrays import SharedArrays
from gipo_vla.rollout.worker import PLAN_FIELDS, WorkerSetup, shared_shapes


class WorkerError(RuntimeError):
    """A worker raised an exception (its traceback is the message) or could not be started."""


@dataclass(frozen=True)
class SimulatorState:
    """The whole state of one simulator, and the episode it will play next."""

    plan: EpisodePlan
    actions: NDArray[np.float32]
    """(N, A) executed since the reset."""
    following: EpisodePlan


@dataclass
class _Process:
    """One worker process; replaced as a whole when it fails."""

    process: subprocess.Popen[bytes]
    connection: Connection
    busy_since: float | None = None


@dataclass(frozen=True)
class Arrival:
    """What came back from a dispatch."""

    slots: NDArray[np.int64]
    """Environments whose results lie in ``WorkerPool.arrays``, ascending."""
    lost: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Environments whose worker failed: their results are gone and a new episode has begun."""


class WorkerPool:
    """``workers`` processes of ``envs_per_worker`` environments each.

    Args:
        next_plan: the plan that follows a plan in its environment; asked ahead of time, since a worker
            starts the next episode itself.
        timeout: seconds without an answer after which a worker counts as hung.
    """

    def __init__(
        self,
        settings: EnvironmentSettings,
        spec: EnvironmentSpec,
        workers: int,
        envs_per_worker: int,
        chunk: int,
        next_plan: Callable[[EpisodePlan], EpisodePlan],
        timeout: float = 120.0,
    ) -> None:
        self.settings, self.spec, self.chunk, self.timeout = settings, spec, chunk, timeout
        self.envs = workers * envs_per_worker
        self.arrays = SharedArrays(shared_shapes(spec, self.envs, chunk))
        self.faults = 0
        """Workers replaced so far."""
        self._slots = [
            tuple(range(worker * envs_per_worker, (worker + 1) * envs_per_worker))
            for worker in range(workers)
        ]
        self.next_plan = next_plan
        self.plans: list[EpisodePlan] = []
        """The episode under way in each environment."""
        self._following: list[EpisodePlan] = []
        self._actions = np.zeros((self.envs, spec.actions_limit, spec.action_size), np.float32)
        self._action_counts = np.zeros(self.envs, np.int64)
        self._processes: list[_Process] = []
        try:
            # All start at once: importing a simulator takes seconds.
            for slots in self._slots:
                self._processes.append(self._start(slots))
            for worker in range(workers):
                self._expect_start(worker)
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------------------------ life of a worker

    def _start(self, slots: tuple[int, ...]) -> _Process:
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)
        # One simulator a process and one process a core: more threads only take turns.
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "gipo_vla.rollout.worker", str(theirs.fileno())],
            pass_fds=(theirs.fileno(), self.arrays.descriptor),
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()
        connection = Connection(ours.detach())
        connection.send(WorkerSetup(self.settings, self.arrays.shapes, self.arrays.descriptor, slots))
        return _Process(process, connection, busy_since=time.monotonic())

    def _expect_start(self, worker: int) -> None:
        if not self._answer(worker):
            raise WorkerError(f"simulator worker {worker} did not start (exit status and message above)")

    def _answer(self, worker: int) -> bool:
        """Wait for a worker's answer; False if it died or hung. Raises what it raised."""
        entry = self._processes[worker]
        deadline = (entry.busy_since or time.monotonic()) + self.timeout
        try:
            if not entry.connection.poll(max(0.0, deadline - time.monotonic())):
                return False
            state, self._last_answer = entry.connection.recv()
        except (EOFError, ConnectionResetError, BrokenPipeError):
            return False
        entry.busy_since = None
        if state == "failed":
            raise WorkerError(f"simulator worker {worker} failed:\n{self._last_answer}")
        return True

    def _request(self, worker: int, *message: Any) -> None:
        entry = self._processes[worker]
        entry.busy_since = time.monotonic()
        try:
            entry.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            pass  # _answer will find it dead

    def _call(self, worker: int, *message: Any) -> Any:
        """Request and answer; a worker that fails here is a hard error."""
        self._request(worker, *message)
        if not self._answer(worker):
            raise WorkerError(f"simulator worker {worker} died or hung during {message[0]}")
        return self._last_answer

    def _call_all(self, *message: Any) -> list[Any]:
        """The same request to every worker at once; their answers."""
        for worker in range(len(self._processes)):
            self._request(worker, *message)
        answers = []
        for worker in range(len(self._processes)):
            if not self._answer(worker):
                raise WorkerError(f"simulator worker {worker} died or hung during {message[0]}")
            answers.append(self._last_answer)
        return answers

    def _replace(self, worker: int) -> None:
        """Put a fresh process in the place of one that died or hung; its environments begin new episodes."""
        self.faults += 1
        self._stop(self._processes[worker], patience=0.0)
        self._processes[worker] = self._start(self._slots[worker])
        self._expect_start(worker)
        for slot in self._slots[worker]:
            self._begin(slot, self._following[slot])
        self._call(worker, "reset", self._slots[worker])
        for slot in self._slots[worker]:
            self._plan_following(slot)

    @staticmethod
    def _stop(entry: _Process, patience: float) -> None:
        try:
            entry.connection.send(("close",))
        except OSError:
            pass
        try:
            entry.process.wait(patience)
        except subprocess.TimeoutExpired:
            entry.process.kill()
            entry.process.wait()
        entry.connection.close()

    def close(self) -> None:
        """Stop every worker. Safe to call twice."""
        for entry in self._processes:
            try:
                entry.connection.send(("close",))
            except OSError:
                pass
        for entry in self._processes:
            self._stop(entry, patience=2.0)
        self._processes.clear()
        self.arrays.close()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def process_ids(self) -> list[int]:
        return [entry.process.pid for entry in self._processes]

    def modules(self) -> list[list[str]]:
        """Names of the modules that each worker has imported."""
        return self._call_all("modules")

    def bare_step_rates(self, seconds: float) -> list[float]:
        """Steps a second of the simulator's own ``step`` in each worker, all at the same time."""
        return self._call_all("bare_steps", seconds)

    # ------------------------------------------------------------------------------------------ episodes

    def _write_plan(self, slot: int, plan: EpisodePlan) -> None:
        for name in PLAN_FIELDS:
            self.arrays[f"plan/{name}"][slot] = getattr(plan, name)

    def _begin(self, slot: int, plan: EpisodePlan) -> None:
        """Note that an episode begins; the worker resets when told to."""
        while len(self.plans) <= slot:
            self.plans.append(plan)
            self._following.append(plan)
        self.plans[slot] = plan
        self._action_counts[slot] = 0
        self._write_plan(slot, plan)

    def _plan_following(self, slot: int) -> None:
        plan = self.plans[slot]
        self._following[slot] = self.next_plan(plan)
        self._write_plan(slot, self._following[slot])

    def begin(self, plans: Sequence[EpisodePlan]) -> None:
        """Start the given episode in every environment."""
        assert len(plans) == self.envs
        self.arrays["active"][:] = True
        for slot, plan in enumerate(plans):
            self._begin(slot, plan)
        self._broadcast("reset")
        for slot in range(self.envs):
            self._plan_following(slot)

    def _broadcast(self, request: str) -> None:
        for worker, slots in enumerate(self._slots):
            self._request(worker, request, slots)
        for worker in range(len(self._slots)):
            if not self._answer(worker):
                raise WorkerError(f"simulator worker {worker} died or hung during {request}")

    def snapshot(self) -> list[SimulatorState]:
        """The state of every simulator; nothing may be under way."""
        return [
            SimulatorState(
                self.plans[slot],
                self._actions[slot, : self._action_counts[slot]].copy(),
                self._following[slot],
            )
            for slot in range(self.envs)
        ]

    def restore(self, states: Sequence[SimulatorState]) -> None:
        """Bring every simulator to a state of ``snapshot``, to the bit, by replaying its actions."""
        for slot, state in enumerate(states):
            self._begin(slot, state.plan)
            count = len(state.actions)
            self._actions[slot, :count] = state.actions
            self._action_counts[slot] = count
        # Round-robin, so that the workers replay side by side.
        for slots in zip(*self._slots):
            for worker, slot in enumerate(slots):
                self._request(worker, "restore", slot, states[slot].actions)
            for worker in range(len(slots)):
                if not self._answer(worker):
                    raise WorkerError(f"simulator worker {worker} died or hung during restore")
        for slot, state in enumerate(states):
            self._following[slot] = state.following
            self._write_plan(slot, state.following)
        self.arrays["active"][:] = True

    @contextmanager
    def borrowed(self, next_plan: Callable[[EpisodePlan], EpisodePlan]) -> Iterator[None]:
        """Lend the simulators to something else; afterwards they are, to the bit, as they were."""
        states, own = self.snapshot(), self.next_plan
        observations = {
            name: array.copy() for name, array in self.arrays.items() if name.startswith("observation/")
        }
        self.next_plan = next_plan
        try:
            yield
        finally:
            self.next_plan = own
            self.restore(states)
        for name, array in observations.items():
            if not np.array_equal(array, self.arrays[name]):
                raise WorkerError(f"restoring the simulators did not reproduce {name}: they are not exact")

    # ------------------------------------------------------------------------------------------- stepping

    def dispatch(self, actions: NDArray[np.float32], slots: NDArray[np.int64] | None = None) -> None:
        """Send chunks (n, K, A) to the workers of ``slots`` (default: all) and return at once.

        The other active environments of these workers step as well: make them inactive
        (``arrays["active"]``) or serve them too.
        """
        chosen = np.arange(self.envs) if slots is None else slots
        self.arrays["actions"][chosen] = actions
        wanted = set(chosen.tolist())
        for worker, own in enumerate(self._slots):
            if wanted.intersection(own):
                self._request(worker, "step")

    def wait(self) -> Arrival:
        """Results of every worker that is stepping."""
        return self._collect(worker for worker, entry in enumerate(self._processes) if entry.busy_since)

    def wait_ready(self) -> Arrival:
        """Results of the workers that are done; waits for the first."""
        busy = {e.connection: w for w, e in enumerate(self._processes) if e.busy_since is not None}
        ready = wait(list(busy), timeout=self.timeout)
        return self._collect([busy[connection] for connection in ready] if ready else busy.values())

    def _collect(self, workers: Iterable[int]) -> Arrival:
        slots: list[int] = []
        lost: list[int] = []
        for worker in sorted(workers):
            if self._answer(worker):
                slots += [slot for slot in self._slots[worker] if self.arrays["active"][slot]]
            else:
                self._replace(worker)
                lost += self._slots[worker]
        arrived = np.array(slots, np.int64)
        self._note_executed(arrived)
        return Arrival(arrived, np.array(lost, np.int64))

    def _note_executed(self, slots: NDArray[np.int64]) -> None:
        """Remember the actions; where an episode ended, the worker has already begun the following one."""
        executed = self.arrays["executed"]
        done = self.arrays["terminated"] | self.arrays["truncated"]  # type: ignore[operator]
        for slot in slots.tolist():
            if done[slot]:
                self._begin(slot, self._following[slot])
                self._plan_following(slot)
            else:
                at, count = self._action_counts[slot], int(executed[slot])  # type: ignore[call-overload]
                self._actions[slot, at : at + count] = self.arrays["actions"][slot, :count]
                self._action_counts[slot] += count

    # --------------------------------------------------------------------------------------------- extras

    def film(
        self,
        plan: EpisodePlan,
        actions: NDArray[np.float32],
        height: int = 360,
        width: int = 480,
        every: int = 1,
    ) -> list[NDArray[np.uint8]]:
        """Play an episode again in the first environment and return its frames.

        The environment is left in that episode: take a ``snapshot`` before and ``restore`` it after.
        """
        self._begin(0, plan)
        return self._call(0, "film", 0, actions, height, width, every)
