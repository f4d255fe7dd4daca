"""One simulator process: ``python -m gipo_vla.rollout.worker DESCRIPTOR``, started by the pool only.

A worker owns several environments, reads actions and episode plans from shared memory, writes observations
and rewards there, and gets one short message a vector step over its socket. It holds no state that its
parent could not rebuild and no random generator; it imports neither torch nor anything that does (1.2 GB in
four workers otherwise).

It is started with ``subprocess`` rather than ``multiprocessing``, whose spawn imports the parent's main
module, and torch with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gipo_envs import (
    Environment,
    EnvironmentSettings,
    EnvironmentSpec,
    Observation,
    families,
    image_formats,
    make,
)
from gipo_envs.benchmark import BareLoop
from gipo_vla.rollout.shared_arrays import Shape, SharedArrays
from gipo_vla.settings import plugins


@dataclass(frozen=True)
class WorkerSetup:
    """The first message to a worker."""

    settings: EnvironmentSettings
    shapes: dict[str, Shape]
    memory: int
    """Descriptor of the shared memory."""
    slots: tuple[int, ...]
    """Rows of the shared arrays that this worker serves."""


IDLE_SECONDS = 0.02
"""Seconds without a request after which a worker looks ahead."""

PLAN_FIELDS = ("task", "initial_state", "seed", "step_limit", "end_on_success")
RESULT_FIELDS = ("rewards", "success", "executed", "success_at_end", "terminated", "truncated")


def shared_shapes(spec: EnvironmentSpec, envs: int, chunk: int) -> dict[str, Shape]:
    """The arrays between a pool and its workers; the first axis is the environment."""
    shapes: dict[str, Shape] = {
        "active": ((envs,), "bool"),
        "actions": ((envs, chunk, spec.action_size), "float32"),
        "rewards": ((envs, chunk), "float32"),
        "success": ((envs, chunk), "bool"),
        "executed": ((envs,), "int32"),
        "success_at_end": ((envs,), "bool"),
        "terminated": ((envs,), "bool"),
        "truncated": ((envs,), "bool"),
        # Actions since the reset, kept by the pool: what restoring replays.
        "history": ((envs, spec.actions_limit, spec.action_size), "float32"),
        "history_length": ((envs,), "int64"),
    }
    shapes |= {f"plan/{name}": ((envs,), "int64") for name in PLAN_FIELDS}
    for name, array in spec.observation.items():
        shapes[f"observation/{name}"] = ((envs, *array.shape), array.dtype)
        # What an episode ended on; ``observation`` then already belongs to the next episode.
        shapes[f"final/{name}"] = ((envs, *array.shape), array.dtype)
    return shapes


class Worker:
    """Serves the pool's requests; each method named ``on_<request>`` answers one."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.slots = setup.slots
        self.settings = setup.settings
        self.bare_loops: dict[int, BareLoop] = {}
        self.arrays = SharedArrays(setup.shapes, setup.memory)
        self.environments: dict[int, Environment] = {slot: make(setup.settings) for slot in self.slots}
        self._rehearsed: dict[int, tuple[int, int]] = {}
        """Initial state and task of the reset that each environment rehearsed last."""
        if "torch" in sys.modules and not plugins.imported():
            raise RuntimeError("something in this simulator worker imported torch (0.25 GB each)")

    def on_step(self) -> None:
        """Execute the actions of every active environment; start the next episode where one ended."""
        for slot in self.slots:
            if not self.arrays["active"][slot]:
                continue
            environment = self.environments[slot]
            result = environment.step_chunk(self.arrays["actions"][slot])
            for name in RESULT_FIELDS:
                self.arrays[name][slot] = getattr(result, name)
            done = result.terminated or result.truncated
            self._write_observation("final" if done else "observation", slot, result.observation)
            if done:
                self._reset(slot)

    def rehearse(self) -> None:
        """Have one environment simulate ahead what the reset to its planned episode will need (half of
        Meta-World's resets, each as long as 30 steps).

        Called while nothing else is asked, as when the policy acts: one reset in a vector step would have
        the other workers wait for this one.
        """
        for slot in self.slots:
            rehearse = getattr(self.environments[slot], "rehearse", None)
            # The pool may be writing a plan: what was rehearsed by half of one is rehearsed again.
            planned = int(self.arrays["plan/initial_state"][slot]), int(self.arrays["plan/task"][slot])
            if rehearse and self.arrays["active"][slot] and self._rehearsed.get(slot) != planned:
                self._rehearsed[slot] = planned
                rehearse(*planned)
                return

    def prepare(self) -> None:
        """Have environments make what the planned episodes will need (LIBERO compiles a task in 1 to 2 s).

        Called when there is nothing else to do: this way a change of task costs time only if simulators are
        what everything waits for.
        """
        for slot in self.slots:
            if prepare := getattr(self.environments[slot], "prepare", None):
                prepare(int(self.arrays["plan/task"][slot]))

    def on_reset(self, slots: tuple[int, ...]) -> None:
        for slot in slots:
            self._reset(slot)

    def on_restore(self, slots: tuple[int, ...]) -> None:
        """Put environments where the planned episodes were after the actions of ``history``."""
        for slot in slots:
            self._reset(slot)
            length = int(self.arrays["history_length"][slot])
            if length:
                self.environments[slot].replay(self.arrays["history"][slot, :length])
                self._write_observation("observation", slot, self.environments[slot].observe())

    def on_film(
        self, slot: int, actions: NDArray[np.float32], height: int, width: int, every: int
    ) -> list[NDArray[np.uint8]]:
        """Frames of the planned episode under ``actions``, one every ``every`` actions."""
        environment = self.environments[slot]
        self._reset(slot)
        frames = [environment.render(height, width)]
        for start in range(0, len(actions), every):
            environment.replay(actions[start : start + every])
            frames.append(environment.render(height, width))
        return frames

    def on_bare_steps(self, seconds: float, chunk: int) -> float:
        """Rate of the simulator's own ``step`` in this process, for the benchmark."""
        if chunk not in self.bare_loops:
            self.bare_loops[chunk] = BareLoop(self.settings, chunk)
        return self.bare_loops[chunk].run(seconds)

    def on_modules(self) -> list[str]:
        return sorted(sys.modules)

    def _reset(self, slot: int) -> None:
        plan = {name: int(self.arrays[f"plan/{name}"][slot]) for name in PLAN_FIELDS}
        end_on_success = bool(plan.pop("end_on_success"))
        observation = self.environments[slot].reset(**plan, end_on_success=end_on_success)
        self._write_observation("observation", slot, observation)

    def _write_observation(self, prefix: str, slot: int, observation: Observation) -> None:
        for name, array in observation.items():
            self.arrays[f"{prefix}/{name}"][slot] = array

    def close(self) -> None:
        for environment in self.environments.values():
            environment.close()


def serve(connection: Connection, create: Callable[[Any], Any] = Worker) -> None:
    """Answer requests until told to stop or until the parent is gone.

    Args:
        create: makes what answers them from the first message.
    """
    worker: Any = None
    request = ""
    try:
        worker = create(connection.recv())
        connection.send(("done", None))
        while True:
            if request == "step" and not connection.poll():
                worker.rehearse()
            if not connection.poll(IDLE_SECONDS):
                worker.prepare()
            request, *arguments = connection.recv()
            if request == "close":
                break
            answer: Any = getattr(worker, f"on_{request}")(*arguments)
            connection.send(("done", answer))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone
    except Exception:
        connection.send(("failed", traceback.format_exc()))
    finally:
        if worker is not None:
            worker.close()


def _die_with_parent() -> None:
    """Ask Linux to kill this process with its parent, should it be killed in mid-simulation."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before the call
            os._exit(1)


def main(create: Callable[[Any], Any] = Worker) -> None:
    """A worker's process; see ``serve``."""
    _die_with_parent()
    # Sent to all processes of a job at once: the trainer decides what becomes of its workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def create_with_plugins(setup: Any) -> Any:
        # Those that the trainer put into the environment. Only where the simulator may be one of theirs: an
        # objective or a policy brings torch along, a quarter of a gigabyte in every worker.
        settings: EnvironmentSettings = setup.settings
        if settings.family not in families() or settings.camera.format not in image_formats.FORMATS:
            plugins.load(())
        return create(setup)

    serve(Connection(int(sys.argv[1])), create_with_plugins)


if __name__ == "__main__":
    main()
