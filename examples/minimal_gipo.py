"""Reinforcement learning with GIPO in one file, to be read from top to bottom.

    python examples/minimal_gipo.py

trains a small policy to drive a point to a goal and prints the share of episodes that succeed; half a minute
on one CPU core. What is here is the whole algorithm: collect with a behaviour policy, keep segments in a
replay, draw old and new ones alike, estimate advantages with the present value network (GAE), weight every
token by how much the policy has changed since it acted (GIPO), step. The loss, the credit and the policy are
the package's; what ``python -m gipo_vla.train`` adds around them is worker processes, several ranks,
DeepSpeed, checkpoints, evaluation and reports.

Shape suffixes: N environments or segments, L transitions of a segment, K steps of a chunk (1 here), D action
dimensions.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

import gipo_envs
from gipo_envs import Environment, EnvironmentSettings
from gipo_vla.credit import AdvantageNormalizer, CreditBatch, GaeSettings, advantage_moments
from gipo_vla.objectives import GipoSettings, objective_loss
from gipo_vla.policies.base import BuildContext, Policy, copy_trainable
from gipo_vla.policies.mlp import MlpSettings

ENVIRONMENTS = 16
SEGMENT_LENGTH = 20  # L: two segments are one episode of 40 decisions
SEGMENTS_KEPT = 128  # of the replay; each iteration adds 32, so that data is up to 4 iterations old
ITERATIONS = 30
UPDATES = 10  # an iteration
BATCH = 16  # segments
LEARNING_RATE = 1e-3
CPU = torch.device("cpu")


@dataclass
class Segments:
    """N segments of L transitions, as they are collected, stored and trained on."""

    states: Tensor
    """(N, L + 1, S): before each transition and after the last."""
    tokens: Tensor
    """(N, L, K, D)."""
    log_probs: Tensor
    """(N, L, K, D), of the tokens under the policy that chose them."""
    rewards: Tensor
    """(N, L, K), scaled."""
    version: Tensor
    """(N,), the updates that the policy that acted had seen."""

    @classmethod
    def stack(cls, parts: list[Segments]) -> Segments:
        return cls(*(torch.cat([getattr(part, own.name) for part in parts]) for own in fields(cls)))

    def one_by_one(self) -> list[Segments]:
        columns = [getattr(self, own.name).split(1) for own in fields(self)]
        return [Segments(*row) for row in zip(*columns, strict=True)]


class Collector:
    """Steps all environments with the behaviour policy. An episode lasts 40 decisions: two segments."""

    def __init__(self, environments: list[Environment], policy: Policy, generator: torch.Generator) -> None:
        self.environments, self.policy, self.generator = environments, policy, generator
        self.spec = environments[0].spec
        self.next_key = 0  # of the initial states; training's are below evaluation's
        self.states = self._reset()
        self.successes: list[bool] = []

    def _reset(self) -> Tensor:
        first = self.next_key
        self.next_key += len(self.environments)
        seen = [one.reset(first + index, seed=0) for index, one in enumerate(self.environments)]
        self.succeeded = np.zeros(len(self.environments), bool)
        return _states(seen)

    def episodes(self, version: int) -> Segments:
        """One episode of every environment, in segments."""
        return Segments.stack(
            [self._segment(version) for _ in range(self.spec.actions_limit // SEGMENT_LENGTH)]
        )

    def _segment(self, version: int) -> Segments:
        states, tokens, log_probs, rewards = [self.states], [], [], []
        for _ in range(SEGMENT_LENGTH):
            decision = self.policy.act(_observations(self.states), temperature=1.0, generator=self.generator)
            actions = self.policy.decode(decision.tokens).numpy()
            results = [one.step_chunk(own) for one, own in zip(self.environments, actions, strict=True)]
            self.states = _states([result.observation for result in results])
            self.succeeded |= np.array([result.success.any() for result in results])
            states.append(self.states)
            tokens.append(decision.tokens)
            log_probs.append(decision.log_probs)
            rewards.append(torch.from_numpy(np.stack([result.rewards for result in results])))
        if results[0].truncated:  # all episodes end together, at the step limit
            self.successes += self.succeeded.tolist()
            self.states = self._reset()
        return Segments(
            torch.stack(states, 1),
            torch.stack(tokens, 1),
            torch.stack(log_probs, 1),
            torch.stack(rewards, 1) * self.spec.reward_scale,
            torch.full((len(actions),), version),
        )


def _states(observations: list[gipo_envs.Observation]) -> Tensor:
    return torch.from_numpy(np.stack([one["state"] for one in observations]))


def _observations(states: Tensor) -> dict[str, Tensor]:
    return {"state": states, "task": torch.zeros(len(states), dtype=torch.int64)}


class Learner:
    """Policy, optimizer, objective and credit; ``update`` is the algorithm."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        groups = policy.parameter_groups()  # policy and value: clipped apart
        self.parameters = [[parameter for _, parameter in named] for named in groups.values()]
        every = chain.from_iterable(self.parameters)
        self.optimizer = torch.optim.AdamW(every, lr=LEARNING_RATE, weight_decay=0.0)
        self.objective = GipoSettings(sigma=1.0)
        self.credit = GaeSettings(gamma=0.99, gae_lambda=0.95).build()
        self.normalizer = AdvantageNormalizer("exact")
        self.version = 0

    def update(self, batch: Segments) -> float:
        """One step on N segments; returns the 95th percentile of |log rho|, which says how old they were."""
        count, length = batch.tokens.shape[:2]
        valid = torch.ones(count, length, dtype=torch.bool)  # no padding: segments divide episodes
        evaluation = self.policy.evaluate(
            _observations(batch.states[:, :-1].flatten(0, 1)),
            batch.tokens.flatten(0, 1),
            torch.ones(count * length),
        )
        values = evaluation.values.unflatten(0, (count, length))

        # Credit: advantages and value targets, from the values of the network as it is now.
        credit = self.credit.on_batch(
            CreditBatch(
                rewards=batch.rewards,
                executed=torch.ones(count, length, dtype=torch.int64),
                mask=valid,
                terminated=torch.zeros(count, dtype=torch.bool),  # a step limit is no termination
                values=values.detach(),
                bootstrap_values=self.policy.value(_observations(batch.states[:, -1])),
            )
        )
        self.normalizer.observe(advantage_moments(credit.advantages, valid))
        advantages = self.normalizer.normalize(credit.advantages)

        # Objective: importance sampling, damped where the policy has moved away from the one that acted.
        behaviour_log_probs = batch.log_probs.flatten(0, 1)
        objective = objective_loss(
            evaluation.log_probs,
            behaviour_log_probs,
            advantages.flatten(),
            torch.ones_like(behaviour_log_probs, dtype=torch.bool),
            self.objective,
        )
        assert credit.value_targets is not None
        value_loss = nn.functional.huber_loss(values, credit.value_targets)
        self.optimizer.zero_grad()
        (objective.loss.mean() + value_loss).backward()
        for group in self.parameters:
            nn.utils.clip_grad_norm_(group, 1.0)
        self.optimizer.step()
        self.version += 1
        return float(objective.log_ratio.abs().quantile(0.95))


def main() -> tuple[float, float]:
    """Trains; returns the share of successful episodes in the first and in the last iterations."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    settings = EnvironmentSettings("point_reach", task="reach", step_limit=2 * SEGMENT_LENGTH)
    environments = [gipo_envs.make(settings) for _ in range(ENVIRONMENTS)]
    policy = MlpSettings().build(BuildContext(environments[0].spec, CPU))
    behaviour = policy.twin()  # acts; gets the learner's weights once an iteration
    assert isinstance(policy, nn.Module) and isinstance(behaviour, nn.Module)
    collector, learner = Collector(environments, behaviour, generator), Learner(policy)
    replay: deque[Segments] = deque(maxlen=SEGMENTS_KEPT)

    for iteration in range(1, ITERATIONS + 1):
        replay.extend(collector.episodes(learner.version).one_by_one())
        for _ in range(UPDATES):
            drawn = torch.randperm(len(replay), generator=generator)[:BATCH].tolist()
            batch = Segments.stack([replay[index] for index in drawn])
            lag = float((learner.version - batch.version).float().mean())
            spread = learner.update(batch)
        copy_trainable(policy, behaviour)
        if iteration % 5 == 0:
            recent = np.mean(collector.successes[-5 * ENVIRONMENTS :])
            print(f"iteration {iteration}  success {recent:.2f}  lag {lag:.0f}  P95|log rho| {spread:.2f}")
    tenth = len(collector.successes) // 10
    first, last = np.mean(collector.successes[:tenth]), np.mean(collector.successes[-tenth:])
    print(f"success of the first {tenth} episodes {first:.2f}, of the last {tenth} {last:.2f}")
    return float(first), float(last)


if __name__ == "__main__":
    main()
