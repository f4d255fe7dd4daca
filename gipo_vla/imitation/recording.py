"""Demonstrations from scripted experts, recorded in worker processes.

Attempt number n at a task is a pure function of (seed, task, n): its initial state is one of training's, its
noise has a stream of its own. Attempts are taken in order, so what is recorded depends neither on the number
of workers nor on which one is faster.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from gipo_envs import EnvironmentSettings, EnvironmentSpec, make_spec
from gipo_envs.errors import UserError
from gipo_envs.registry import require_experts
from gipo_vla.imitation.demonstrations import Costs, Episode
from gipo_vla.imitation.recorder import Attempt, Outcome, RecorderSetup
from gipo_vla.imitation.settings import ExpertSettings
from gipo_vla.rollout.episodes import Role, generator
from gipo_vla.rollout.process import WorkerLostError, WorkerProcess

FIRST_LOOK = 20
"""Attempts after which a state range that held none of them is taken for a mistake, times this."""


def attempts(spec: EnvironmentSpec, settings: ExpertSettings, seed: int, task: int) -> Iterator[Attempt]:
    """The attempts at a task, without end."""
    for number in itertools.count():
        state = number if settings.initial_states is None else number % settings.initial_states
        key = generator(seed, Role.DEMONSTRATION, task, state).integers(*spec.training_keys)
        rng = generator(seed, Role.DEMONSTRATION, task, number, 1)
        yield Attempt(task, int(key), int(rng.integers(2**31)), int(rng.integers(2**63)))


class Recording:
    """The workers of a recording. Use as a context.

    Args:
        workers: processes.
        timeout: seconds without an answer after which one counts as hung.

    Raises:
        UserError: the environment has no experts, or ``state_range`` is of no dimension of its state.
    """

    def __init__(
        self,
        env: EnvironmentSettings,
        spec: EnvironmentSpec,
        settings: ExpertSettings,
        seed: int,
        workers: int,
        timeout: float,
    ) -> None:
        require_experts(env.family)
        self._range = _state_range(env, settings)
        self.spec, self.settings, self.seed = spec, settings, seed
        self.costs = Costs()
        """Episodes begun by the expert (those outside ``state_range`` were not), and their steps."""
        noise, after, every = settings.action_noise, settings.steps_after_success, settings.observe_every
        setup = RecorderSetup(env, noise, after, every, self._range)
        module = "gipo_vla.imitation.recorder"
        self._processes = [WorkerProcess(number, setup, timeout, module) for number in range(workers)]

    def __enter__(self) -> Recording:
        try:
            for process in self._processes:
                _answer(process)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop every process."""
        for process in self._processes:
            process.ask_to_stop()
        for process in self._processes:
            process.stop(patience=2.0)

    def episodes(self) -> Iterator[Episode]:
        """``count`` successful episodes of every task, task by task.

        Raises:
            UserError: an expert succeeds too rarely, or no initial state lies within ``state_range``.
        """
        for task in range(len(self.spec.tasks)):
            yield from self._episodes_of(task)

    def _episodes_of(self, task: int) -> Iterator[Episode]:
        kept = tried = skipped = 0
        for outcome in self._outcomes(task):
            if not outcome.in_range:
                skipped += 1
                self._refuse_empty_range(tried, skipped)
                continue
            tried += 1
            self.costs.attempts += 1
            self.costs.env_steps += outcome.env_steps
            if outcome.episode is not None:
                kept += 1
                yield outcome.episode
            if kept == self.settings.count:
                return
            if tried == self.settings.max_attempts:
                raise UserError(
                    f"the expert of {self.spec.tasks[task]} succeeded in {kept} of {tried} attempts, "
                    f"demonstrations.count is {self.settings.count}: lower demonstrations.action_noise "
                    f"({self.settings.action_noise:g}), raise env.step_limit ({self.spec.step_limit}) or "
                    "demonstrations.max_attempts"
                )

    def _refuse_empty_range(self, tried: int, skipped: int) -> None:
        if self._range is not None and skipped > FIRST_LOOK * (tried + FIRST_LOOK):
            index, low, high = self._range
            raise UserError(
                f"demonstrations.state_range: state[{index}] was within {low:g} to {high:g} in {tried} of "
                f"{tried + skipped} initial states: widen it"
            )

    def _outcomes(self, task: int) -> Iterator[Outcome]:
        """Outcomes of the attempts at a task, in order, without end."""
        plans = attempts(self.spec, self.settings, self.seed, task)
        while True:
            for process in self._processes:
                process.request("record", next(plans))
            # All of them are waited for: their answers are in any case the next ones in order.
            yield from [_answer(process) for process in self._processes]


def _state_range(env: EnvironmentSettings, settings: ExpertSettings) -> tuple[int, float, float] | None:
    bounds = settings.state_range
    if bounds is None:
        return None
    size = make_spec(replace(env, observations=("state",))).observation["state"].shape[0]
    if bounds.index >= size:
        raise UserError(
            f"demonstrations.state_range.index is {bounds.index}: the state of {env.family} has {size} "
            "numbers, counted from 0"
        )
    low = -math.inf if bounds.low is None else bounds.low
    return bounds.index, low, math.inf if bounds.high is None else bounds.high


def _answer(process: WorkerProcess) -> Outcome:
    answer = process.answer()
    if not answer.alive:
        raise WorkerLostError(
            f"recording process {process.number} died, or took more than "
            f"rollout.worker_timeout_s={process.timeout:g} seconds for an attempt"
        )
    outcome: Outcome = answer.value
    return outcome
