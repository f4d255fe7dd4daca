"""A pool of simulator processes over shared memory.

The parent knows everything that decides a simulator's state: the plan of the episode and the actions since
its reset. ``snapshot`` returns just that, ``restore`` replays it, and the state is exact for every
simulator. A worker that dies or hangs is replaced; its environments start new episodes.

Per vector step a worker gets one short message; actions, observations and rewards lie in shared memory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gipo_envs import EnvironmentSettings, EnvironmentSpec
from gipo_vla.rollout.episodes import EpisodePlan
from gipo_vla.rollout.process import WorkerError, WorkerLostError, WorkerProcess
from gipo_vla.rollout.shared_arrays import SharedArrays
from gipo_vla.rollout.worker import PLAN_FIELDS, WorkerSetup, shared_shapes

FAULTS_IN_A_ROW = 5
"""A worker that had to be replaced this often without one step between is given up: its environments are
lost at every step, until whoever owns the pool looks at ``given_up`` and stops in good order."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SimulatorState:
    """The whole state of one simulator, and the episode it will play next."""

    plan: EpisodePlan
    actions: NDArray[np.float32]
    """(N, A) executed since the reset."""
    following: EpisodePlan


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
        self.retired = False
        """Nothing goes on after who borrows the simulators next: they are not put back to where they were."""
        self._slots = [
            tuple(range(worker * envs_per_worker, (worker + 1) * envs_per_worker))
            for worker in range(workers)
        ]
        self.next_plan = next_plan
        self.plans: list[EpisodePlan] = []
        """The episode under way in each environment."""
        self._following: list[EpisodePlan] = []
        self._faults_in_a_row = [0] * workers
        self.given_up: dict[int, str] = {}
        """Workers that could not be kept alive, and how they fared."""
        self._missed: set[int] = set()
        """Workers given up that were asked to step."""
        self._processes: list[WorkerProcess] = []
        try:
            # All start at once: importing a simulator takes seconds.
            for worker in range(workers):
                self._processes.append(self._start(worker))
            for worker in range(workers):
                if not self._processes[worker].answer().alive:
                    self._respawn(worker)
            self._refuse_given_up()
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------------------------ life of a worker

    def _start(self, worker: int) -> WorkerProcess:
        memory, slots = self.arrays.descriptor, self._slots[worker]
        setup = WorkerSetup(self.settings, self.arrays.shapes, memory, slots)
        return WorkerProcess(worker, setup, self.timeout)

    def _call(self, processes: Sequence[WorkerProcess], *message: Any) -> list[Any]:
        """The same request to several workers at once; their answers. One that fails is a hard error."""
        for process in processes:
            process.request(*message)
        return self._answers(processes, message[0])

    def _answers(self, processes: Sequence[WorkerProcess], request: str) -> list[Any]:
        """The answers to a request of several workers, once all have answered or failed."""
        answers = [process.answer() for process in processes]
        for process, answer in zip(processes, answers):
            if not answer.alive:
                raise WorkerLostError(
                    f"simulator worker {process.number} died during {request!r}, or took more than "
                    f"rollout.worker_timeout_s={self.timeout:g} seconds for it"
                )
        return [answer.value for answer in answers]

    def _replace(self, worker: int) -> None:
        """Put a fresh process in the place of one that died or hung; its environments begin new episodes."""
        for slot in self._slots[worker]:
            self._begin(slot, self._following[slot])
        self._respawn(worker, "reset")
        for slot in self._slots[worker]:
            self._plan_following(slot)

    def _respawn(self, worker: int, request: str | None = None) -> None:
        """Have a fresh process in the place of one that died or hung answer ``request``, if any."""
        # A fresh one may fail as well: after too many it is given up.
        alive = False
        while not alive and worker not in self.given_up:
            self.faults += 1
            self._faults_in_a_row[worker] += 1
            what = self._processes[worker].stop(patience=0.1)
            if self._faults_in_a_row[worker] > FAULTS_IN_A_ROW:
                self.given_up[worker] = (
                    f"simulator worker {worker} {what}, {FAULTS_IN_A_ROW + 1} times in a row"
                )
                _log.warning("%s; it is given up", self.given_up[worker])
                return
            _log.warning("simulator worker %d %s; it is replaced", worker, what)
            self._processes[worker] = self._start(worker)
            alive = self._processes[worker].answer().alive
            if alive and request is not None:
                self._processes[worker].request(request, self._slots[worker])
                alive = self._processes[worker].answer().alive

    def _everywhere(self, request: str) -> None:
        """Have every worker bring its environments to the written plans; one that fails is replaced."""
        if not self.given_up:
            for process, slots in zip(self._processes, self._slots):
                process.request(request, slots)
            for worker, process in enumerate(self._processes):
                if not process.answer().alive:
                    self._respawn(worker, request)
        self._refuse_given_up()

    def _refuse_given_up(self) -> None:
        if self.given_up:
            raise WorkerLostError("; ".join(self.given_up.values()))

    def close(self) -> None:
        """Stop every worker. Safe to call twice."""
        for process in self._processes:
            process.ask_to_stop()
        for process in self._processes:
            process.stop(patience=2.0)
        self._processes.clear()
        self.arrays.close()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def process_ids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def modules(self) -> list[list[str]]:
        """Names of the modules that each worker has imported."""
        return self._call(self._processes, "modules")

    def bare_step_rates(self, seconds: float, chunk: int = 1) -> list[float]:
        """Steps a second of the simulator's own ``step`` in each worker, all at the same time; its cameras
        look once a ``chunk``."""
        return self._call(self._processes, "bare_steps", seconds, chunk)

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
        self.arrays["history_length"][slot] = 0
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
        self._everywhere("reset")
        for slot in range(self.envs):
            self._plan_following(slot)

    def snapshot(self) -> list[SimulatorState]:
        """The state of every simulator; nothing may be under way."""
        return [
            SimulatorState(
                self.plans[slot],
                self.arrays["history"][slot, : self.arrays["history_length"][slot]].copy(),
                self._following[slot],
            )
            for slot in range(self.envs)
        ]

    def restore(self, states: Sequence[SimulatorState]) -> None:
        """Bring every simulator to a state of ``snapshot``, to the bit, by replaying its actions."""
        self._settle()
        for slot, state in enumerate(states):
            self._begin(slot, state.plan)
            count = len(state.actions)
            self.arrays["history"][slot, :count] = state.actions
            self.arrays["history_length"][slot] = count
        self._everywhere("restore")
        for slot, state in enumerate(states):
            self._following[slot] = state.following
            self._write_plan(slot, state.following)
        self.arrays["active"][:] = True

    def _settle(self) -> None:
        """Throw away the answers of requests under way (an exception may have left some)."""
        for worker in self._busy():
            if not self._processes[worker].answer().alive:
                self._respawn(worker, "reset")

    @contextmanager
    def borrowed(self, next_plan: Callable[[EpisodePlan], EpisodePlan]) -> Iterator[None]:
        """Lend the simulators to something else; afterwards they are, to the bit, as they were (see
        ``retired``)."""
        states, own = self.snapshot(), self.next_plan
        observations = {
            name: array.copy() for name, array in self.arrays.items() if name.startswith("observation/")
        }
        self.next_plan = next_plan
        try:
            yield
        finally:
            self.next_plan = own
            if not self.retired:
                self.restore(states)
        if self.retired:
            return
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
        own = self.envs // len(self._processes)
        asked = (
            range(len(self._processes)) if len(chosen) == self.envs else {s // own for s in chosen.tolist()}
        )
        for worker in sorted(asked):
            if worker in self.given_up:
                self._missed.add(worker)
            else:
                self._processes[worker].request("step")

    def wait(self) -> Arrival:
        """Results of every worker that is stepping."""
        return self._collect([*self._busy(), *self._missed])

    def wait_ready(self) -> Arrival:
        """Results of the workers that are done; waits for the first. Workers that hung count as lost, also
        while others still answer."""
        busy = self._busy()
        done = set(self._missed)
        while busy and not done:
            connections = {self._processes[worker].connection: worker for worker in busy}
            ready = wait(list(connections), timeout=max(0.0, min(busy.values()) - time.monotonic()))
            now = time.monotonic()
            done = {worker for connection, worker in connections.items() if connection in ready}
            done |= {worker for worker, deadline in busy.items() if deadline <= now}
        return self._collect(done)

    def _busy(self) -> dict[int, float]:
        """Deadlines of the workers that are stepping."""
        return {p.number: p.deadline for p in self._processes if p.deadline is not None}

    def _collect(self, workers: Iterable[int]) -> Arrival:
        slots: list[int] = []
        lost: list[int] = []
        for worker in sorted(workers):
            if worker in self._missed:
                self._missed.remove(worker)
                lost += self._slots[worker]
            elif self._processes[worker].answer().alive:
                self._faults_in_a_row[worker] = 0
                slots += [slot for slot in self._slots[worker] if self.arrays["active"][slot]]
            else:
                self._replace(worker)
                lost += self._slots[worker]
        arrived = np.array(slots, np.int64)
        self._note_executed(arrived)
        return Arrival(arrived, np.array(lost, np.int64))

    def _note_executed(self, slots: NDArray[np.int64]) -> None:
        """Remember the actions; where an episode ended, the worker has already begun the following one."""
        done = self.arrays["terminated"][slots] | self.arrays["truncated"][slots]
        for slot in slots[done].tolist():
            self._begin(slot, self._following[slot])
            self._plan_following(slot)
        # An episode that goes on has executed the whole chunk.
        going_on, length = slots[~done], self.arrays["history_length"]
        places = length[going_on, None] + np.arange(self.chunk)
        self.arrays["history"][going_on[:, None], places] = self.arrays["actions"][going_on]
        length[going_on] += self.chunk

    # --------------------------------------------------------------------------------------------- extras

    def films(
        self,
        episodes: Sequence[tuple[EpisodePlan, NDArray[np.float32]]],
        height: int,
        width: int,
        every: int = 1,
    ) -> Iterator[list[NDArray[np.uint8]]]:
        """Play episodes again and yield the frames of each, in their order; every worker draws one at a time,
        also while the caller is busy with the frames of another.

        The first environment of every worker is left in such an episode: take a ``snapshot`` before and
        ``restore`` it after.

        Args:
            episodes: plan and actions (N, A) of each.
            every: actions between two frames.
        """
        workers = self._processes[: len(episodes)]
        for number in range(len(episodes) + len(workers)):
            process = workers[number % len(workers)]
            drawn = self._answers([process], "film") if number >= len(workers) else []
            if number < len(episodes):
                plan, actions = episodes[number]
                slot = self._slots[process.number][0]
                self._begin(slot, plan)
                process.request("film", slot, actions, height, width, every)
            yield from drawn
