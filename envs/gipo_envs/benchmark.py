"""How fast simulators are: a quick trial of one, and the yardstick of the rollout benchmark, a simulator's
own ``step`` in a loop, without this project."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from gipo_envs.protocol import EnvironmentSettings
from gipo_envs.registry import get, make, make_spec

BLOCK = 40
"""Steps between two looks at the clock; a multiple of the usual chunks."""


def trial(settings: EnvironmentSettings, steps: int) -> str:
    """Make an environment, step it and look once; a sentence that says how fast that was."""
    clock = [time.perf_counter()]
    environment = make(settings)
    environment.reset(0, 0)
    clock.append(time.perf_counter())
    environment.replay(np.zeros((steps, environment.spec.action_size), np.float32))
    clock.append(time.perf_counter())
    environment.observe()
    clock.append(time.perf_counter())
    environment.close()
    made, stepped, looked = np.diff(clock)
    frames = f", images in {looked * 1e3:.0f} ms" if "images" in environment.spec.observation else ""
    rate = steps * environment.spec.action_repeat / stepped
    name = f"{settings.family} {settings.task}"
    return f"{name} made in {made:.1f} s, {rate:,.0f} env steps a second on one core{frames}"


class BareLoop:
    """Steps one environment as its library offers it, with random actions.

    Meta-World: the task's own class with its own ``step`` and ``reset``, no wrappers. LIBERO: its own
    environment, cameras drawn once a chunk (``chunk=1``: in every step, the naive loop). Families without a
    library behind them are stepped through the environment itself.
    """

    def __init__(self, settings: EnvironmentSettings, chunk: int = 1) -> None:
        self._rng = np.random.default_rng(0)
        spec = make_spec(settings)
        self._actions = self._rng.uniform(-1, 1, (1000, spec.action_size)).astype(np.float32)
        self._steps_to_reset = spec.step_limit
        self._step: Callable[[np.ndarray], object]
        self._reset: Callable[[], object]
        make_bare_simulator = get(settings.family).make_bare_simulator
        if make_bare_simulator is not None:
            simulator = make_bare_simulator(settings, spec, chunk)
            self._step, self._reset = simulator.step, simulator.reset
        else:
            environment = make(settings)
            self._steps_to_reset = -(-spec.step_limit // spec.action_repeat)
            self._step = lambda action: environment.step_chunk(action[None])
            self._reset = lambda: environment.reset(0, 0)

    def run(self, seconds: float) -> float:
        """Calls of ``step`` a second over about ``seconds``; the time of resets does not count."""
        steps, stepping = 0, 0.0
        while stepping < seconds:
            self._reset()
            began = time.perf_counter()
            # In blocks, so that slow simulators end in time and reading the clock costs fast ones nothing.
            for block in range(0, self._steps_to_reset, BLOCK):
                for index in range(block, min(block + BLOCK, self._steps_to_reset)):
                    self._step(self._actions[(steps + index) % len(self._actions)])
                if stepping + time.perf_counter() - began >= seconds:
                    break
            stepping += time.perf_counter() - began
            steps += index + 1
        return steps / stepping
