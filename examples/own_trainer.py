"""GIPO's loss in somebody's own training loop: plain torch, nothing else of this project.

``objective_loss`` takes log-probs of taken actions under the policy that is trained and under the one that
took them, advantages, and a mask; it returns a loss for every token. Sum it over valid tokens, divide by
their number, call ``backward``. Here the loop is yours: a network picks one of eight actions after seeing a
one-hot context. Data are collected once every 25 updates and used again and again meanwhile, so that most of
each batch was sampled by older weights.

    python examples/own_trainer.py

prints the share of best actions before and after, in a few seconds.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import nn

from gipo_vla.objectives import GipoSettings, objective_loss

CONTEXTS, ACTIONS, BATCH = 16, 8, 256


def main() -> tuple[float, float]:
    """Trains; returns the share of best actions before and after."""
    torch.manual_seed(0)
    best_action = torch.randint(ACTIONS, (CONTEXTS,))
    policy = nn.Sequential(nn.Linear(CONTEXTS, 64), nn.Tanh(), nn.Linear(64, ACTIONS))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    objective = GipoSettings(sigma=1.0)
    replay: deque[tuple[torch.Tensor, ...]] = deque(maxlen=4)

    def share_of_best() -> float:
        return float((policy(torch.eye(CONTEXTS)).argmax(-1) == best_action).float().mean())

    before = share_of_best()
    for update in range(200):
        if update % 25 == 0:  # act with the present weights; remember the log-probs
            contexts = torch.randint(CONTEXTS, (BATCH,))
            with torch.no_grad():
                behaviour = torch.distributions.Categorical(
                    logits=policy(nn.functional.one_hot(contexts, CONTEXTS).float())
                )
                actions = behaviour.sample()
                rewards = (actions == best_action[contexts]).float()
                replay.append((contexts, actions, behaviour.log_prob(actions), rewards))
        contexts, actions, behaviour_log_probs, rewards = replay[update % len(replay)]

        logits = policy(nn.functional.one_hot(contexts, CONTEXTS).float())
        log_probs = torch.distributions.Categorical(logits=logits).log_prob(actions)
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        # Shapes are (N, K, D): N decisions of K steps with D tokens each. Here K = D = 1.
        output = objective_loss(
            log_probs[:, None, None],
            behaviour_log_probs[:, None, None],
            advantages,
            torch.ones(BATCH, 1, 1, dtype=torch.bool),
            objective,
        )
        optimizer.zero_grad()
        (output.loss.sum() / BATCH).backward()
        optimizer.step()
    return before, share_of_best()


if __name__ == "__main__":
    before, after = main()
    print(f"best actions: {before:.0%} before, {after:.0%} after training")
