"""One recording process: ``python -m gipo_vla.imitation.recorder DESCRIPTOR``, started by ``recording`` only.

An attempt is simulated twice. First the expert drives an environment that observes nothing but what it
reads; only if it succeeds are the same actions executed again in the environment that the policy will live
in, with its cameras. So failures cost no rendering, and an expert needs no observation that the policy has.

Like a simulator worker it imports no torch and holds no random generator: an attempt is a pure function of
its plan.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gipo_envs import Environment, EnvironmentSettings, Observation, make
from gipo_envs.registry import get, make_expert
from gipo_vla.imitation.demonstrations import Episode
from gipo_vla.rollout import worker


@dataclass(frozen=True)
class RecorderSetup:
    """The first message to a recorder."""

    settings: EnvironmentSettings
    action_noise: float
    """Standard deviation of what is added to the executed actions."""
    steps_after_success: int
    """Actions recorded after the first success."""
    observe_every: int
    """Actions between two recorded observations."""
    state_range: tuple[int, float, float] | None = None
    """Index into the state, least and greatest value at the beginning of an episode."""


@dataclass(frozen=True)
class Attempt:
    """Everything that decides an attempt."""

    task: int
    initial_state: int
    seed: int
    """Of the environment's reset."""
    noise_seed: int


@dataclass(frozen=True)
class Outcome:
    """What an attempt led to."""

    episode: Episode | None
    """None: it did not succeed, or did not begin within ``state_range``."""
    env_steps: int
    """Simulated by the expert."""
    in_range: bool = True


class Recorder:
    """Answers the requests of ``recording``; see ``gipo_vla.rollout.worker.serve``."""

    def __init__(self, setup: RecorderSetup) -> None:
        self.setup = setup
        reads = get(setup.settings.family).expert_observations
        if setup.state_range is not None and "state" not in reads:
            reads = ("state", *reads)
        self.driven: Environment = make(replace(setup.settings, observations=reads))
        self.viewed: Environment = make(setup.settings)

    def rehearse(self) -> None:
        """Nothing to do before the next request."""

    def prepare(self) -> None:
        """Nothing to do while idle."""

    def on_record(self, attempt: Attempt) -> Outcome:
        """Attempt one episode."""
        observation = self.driven.reset(
            attempt.initial_state, attempt.seed, attempt.task, end_on_success=False
        )
        if self.setup.state_range is not None:
            index, low, high = self.setup.state_range
            if not low <= float(observation["state"][index]) <= high:
                return Outcome(None, 0, in_range=False)
        wanted, executed, succeeded = self._drive(attempt, observation)
        env_steps = len(executed) * self.driven.spec.action_repeat
        if not succeeded:
            return Outcome(None, env_steps)
        return Outcome(self._view(attempt, wanted, executed), env_steps)

    def on_modules(self) -> list[str]:
        return sorted(sys.modules)

    def _drive(
        self, attempt: Attempt, observation: Observation
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], bool]:
        """The expert's actions (T, A), those executed (T, A), and whether they succeeded."""
        spec, setup = self.driven.spec, self.setup
        expert = make_expert(setup.settings.family, spec.tasks[attempt.task])
        noise = np.random.default_rng(attempt.noise_seed)
        wanted: list[NDArray[np.float32]] = []
        executed: list[NDArray[np.float32]] = []
        left = spec.actions_limit
        succeeded = False
        while left > 0:
            action = expert(observation)
            disturbed = action + setup.action_noise * noise.standard_normal(len(action))
            wanted.append(action)
            executed.append(disturbed.clip(-1.0, 1.0).astype(np.float32))
            result = self.driven.step_chunk(executed[-1][None])
            observation = result.observation
            left -= 1
            if result.success[0] and not succeeded:
                succeeded = True
                left = min(left, setup.steps_after_success)
            if result.terminated or result.truncated:
                break
        return np.stack(wanted), np.stack(executed), succeeded

    def _view(self, attempt: Attempt, wanted: NDArray[np.float32], executed: NDArray[np.float32]) -> Episode:
        """The episode as the policy's environment shows it."""
        rows = [self.viewed.reset(attempt.initial_state, attempt.seed, attempt.task, end_on_success=False)]
        every = self.setup.observe_every
        observed_at = np.arange(0, len(executed), every)
        for at in observed_at[1:]:
            self.viewed.replay(executed[at - every : at])
            rows.append(self.viewed.observe())
        names = [name for name in rows[0] if name != "task"]
        return Episode(
            task=attempt.task,
            initial_state=attempt.initial_state,
            actions=wanted,
            observed_at=observed_at.astype(np.int64),
            observations={name: np.stack([row[name] for row in rows]) for name in names},
        )

    def close(self) -> None:
        self.driven.close()
        self.viewed.close()


if __name__ == "__main__":
    # By its own name: what it sends would otherwise be an Outcome of __main__, which its parent is not.
    from gipo_vla.imitation import recorder

    worker.main(recorder.Recorder)
