"""Which episode an environment plays next, and every random draw that decides it.

No random generator lives in a worker. An episode is a pure function of (seed, global env id, episode
number), so respawning a worker, restoring a simulator or changing the number of ranks changes no stream. With
``rollout.task_sampling: success`` the task also depends on the sampler's statistics at the time of planning.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from gipo_envs import EnvironmentSpec
from gipo_envs.errors import UserError
from gipo_vla.rollout.task_sampler import TaskSampler


class Role(IntEnum):
    """What a random stream is for; part of its key, so that streams never coincide."""

    EPISODE = 1
    REPLAY = 2
    ACTION = 3
    EVALUATION = 4
    INITIALIZATION = 5
    DEMONSTRATION = 6
    CLONING = 7


def generator(seed: int, role: Role, *ids: int) -> np.random.Generator:
    """The random stream of ``SeedSequence(seed, role, *ids)``."""
    return np.random.default_rng(np.random.SeedSequence([seed, int(role), *ids]))


def integer_seed(seed: int, role: Role, *ids: int) -> int:
    """A 63-bit seed for a generator that is not numpy's."""
    return int(generator(seed, role, *ids).integers(2**63))


@dataclass(frozen=True)
class EpisodePlan:
    """Everything that decides an episode but the actions."""

    task: int
    initial_state: int
    seed: int
    step_limit: int
    end_on_success: bool = False
    env: int = -1
    """Global env id."""
    episode: int = -1
    """Number of the episode within its environment."""
    group: int = -1
    """Episodes of one group share task and initial state; -1: no group."""


class TrainingEpisodes:
    """Training episodes: tasks drawn by a sampler, initial states by the task's own.

    Args:
        spec: the environment.
        seed: the run's seed.
        envs: environments over all ranks.
        group_size: consecutive environments that share task and initial state in each episode number.
        stagger: shorten first episodes to evenly spread lengths, so that resets spread in time.
        tasks: chooses the tasks; None: uniformly.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        seed: int,
        envs: int,
        group_size: int = 1,
        stagger: bool = True,
        tasks: TaskSampler | None = None,
    ) -> None:
        self.spec, self.seed, self.envs, self.group_size = spec, seed, envs, group_size
        self.tasks = tasks or TaskSampler(spec.tasks)
        self._group_tasks: dict[tuple[int, int], tuple[int, int]] = {}
        """Task and number of members that have yet to ask, by group and episode number."""
        # A shortened episode is no fair member of a group: its return is smaller for its length.
        self.stagger = stagger and group_size == 1

    def first(self, envs: range) -> list[EpisodePlan]:
        """The first episodes of the environments with these global ids."""
        return [self.plan(env, 0) for env in envs]

    def following(self, plan: EpisodePlan) -> EpisodePlan:
        """The episode after ``plan`` in its environment."""
        return self.plan(plan.env, plan.episode + 1)

    def plan(self, env: int, episode: int) -> EpisodePlan:
        """Episode number ``episode`` of the environment with global id ``env``.

        To be asked once for each: members of a group ask at different times, between which the sampler's
        statistics may move, and the first one's draw binds the others.
        """
        group = env // self.group_size
        rng = generator(self.seed, Role.EPISODE, group, episode)
        task = self._of_group(group, episode, self.tasks.draw(rng))
        initial_state = int(rng.integers(*self.spec.training_keys))
        # The last number keeps the key apart from any group's, whatever the number of environments.
        own = generator(self.seed, Role.EPISODE, env, episode, 1)
        limit = self.spec.step_limit
        if self.stagger and episode == 0:
            repeat = self.spec.action_repeat
            actions = max(1, round(self.spec.actions_limit * (env + 1) / self.envs))
            limit = min(limit, actions * repeat)
        groups = -(-self.envs // self.group_size)
        return EpisodePlan(
            task=task,
            initial_state=initial_state,
            # Members of a group start alike, so whatever else the simulator draws is shared too.
            seed=int((rng if self.group_size > 1 else own).integers(2**31)),
            step_limit=limit,
            end_on_success=self.spec.end_on_success,
            env=env,
            episode=episode,
            group=episode * groups + group if self.group_size > 1 else -1,
        )

    def _of_group(self, group: int, episode: int, drawn: int) -> int:
        """The task that the first member of a group drew; any later member's own draw is dropped."""
        if self.group_size == 1:
            return drawn
        task, left = self._group_tasks.pop((group, episode), (drawn, self.group_size))
        if left > 1:
            self._group_tasks[group, episode] = task, left - 1
        return task

    def state(self) -> list[list[int]]:
        """This rank's half-planned groups, for a checkpoint: group, episode number, task, members to ask."""
        return [[*key, *value] for key, value in self._group_tasks.items()]

    def load_state(self, state: list[list[int]]) -> None:
        """Take back what ``state`` returned."""
        self._group_tasks = {(group, episode): (task, left) for group, episode, task, left in state}


def evaluation_plans(spec: EnvironmentSpec, episodes_per_task: int) -> list[EpisodePlan]:
    """The same held-out initial states for every policy and every seed: the first keys of each task. Raises
    UserError: there are not so many."""
    first, stop = spec.evaluation_keys
    if episodes_per_task > stop - first:
        raise UserError(
            f"eval.episodes_per_task is {episodes_per_task}: this environment has {stop - first} held-out "
            "initial states a task; lower it"
        )
    return [
        EpisodePlan(
            task, first + index, index, spec.step_limit, spec.evaluation_ends_on_success, episode=index
        )
        for task in range(len(spec.tasks))
        for index in range(episodes_per_task)
    ]
