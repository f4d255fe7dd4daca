"""What an expert did, on its way into a loss: for cloning, and beside an objective.

Shape suffixes: B examples, K chunk, A action size, D action dimensions, V bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from gipo_vla.distributed import group
from gipo_vla.learner.batch import MicroBatch, to_device
from gipo_vla.policies.base import Evaluation, Observations, Policy

SUMS = ("loss", "hits", "distance", "tokens")
"""What ``cloning_loss`` adds up over tokens, in this order."""


@dataclass(frozen=True)
class Demonstrated:
    """Examples as arrays: what was seen, and the actions of an expert from there on."""

    observations: dict[str, NDArray[Any]]
    """(B, ...) with ``task``."""
    actions: NDArray[Any]
    """float32 (B, K, A); behind the end of an episode its last action again."""
    valid: NDArray[Any]
    """bool (B, K)."""

    def __len__(self) -> int:
        return len(self.actions)

    def part(self, rows: slice) -> Demonstrated:
        """Some of the examples."""
        observations = {name: array[rows] for name, array in self.observations.items()}
        return Demonstrated(observations, self.actions[rows], self.valid[rows])


@dataclass(frozen=True)
class DemonstratedTokens:
    """Examples as a policy evaluates them, on its device."""

    observations: Observations
    actions: Tensor
    """float32 (B, K, A)."""
    tokens: Tensor
    """int64 (B, K, D), the nearest to the actions."""
    mask: Tensor
    """bool (B, K, D)."""

    @property
    def temperature(self) -> Tensor:
        """float32 (B,): demonstrations are likely at the temperature 1."""
        return torch.ones(len(self.tokens), device=self.tokens.device)


def tokens_of(policy: Policy, batch: Demonstrated, device: torch.device) -> DemonstratedTokens:
    """Examples for a policy."""
    observations = {name: to_device(array, device) for name, array in batch.observations.items()}
    actions, valid = to_device(batch.actions, device), to_device(batch.valid, device)
    mask = valid[:, :, None].expand(-1, -1, policy.action_dims)
    return DemonstratedTokens(observations, actions, policy.encode(actions), mask)


def cloning_losses(log_probs: Tensor, mask: Tensor) -> Tensor:
    """-log p of the valid tokens, () summed. Args: log_probs float32 (B, K, D), mask bool (B, K, D)."""
    return -torch.where(mask, log_probs, 0.0).sum()


def cloning_loss(policy: Policy, batch: DemonstratedTokens, evaluation: Evaluation) -> tuple[Tensor, Tensor]:
    """The loss () summed over tokens, and ``SUMS`` (4,) float64, which metrics are made of.

    Args:
        evaluation: of the batch's tokens.
    """
    loss = cloning_losses(evaluation.log_probs, batch.mask)
    with torch.no_grad():
        assert evaluation.logits is not None
        likeliest = evaluation.logits.argmax(-1)
        hits = ((likeliest == batch.tokens) & batch.mask).sum()
        distance = torch.where(batch.mask, (policy.decode(likeliest) - batch.actions).abs(), 0.0).sum()
        sums = torch.stack([one.double() for one in (loss.detach(), hits, distance, batch.mask.sum())])
    return loss, sums


class DemonstratedShare:
    """Demonstrations beside the batch of one update: they go through the forwards of its micro-batches, and
    their loss is a mean over their own tokens.

    Args:
        policy: that is trained.
        batch: the demonstrations of all ranks, the same on every rank.
        micro_batches: of each rank.
        coefficient: weight of the loss.
    """

    def __init__(
        self,
        policy: Policy,
        batch: Demonstrated,
        micro_batches: int,
        coefficient: float,
        device: torch.device,
    ) -> None:
        self.policy, self.coefficient = policy, coefficient
        # Counted without asking the others.
        self.tokens = int(batch.valid.sum()) * policy.action_dims
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        """Of this rank's part."""
        parts = micro_batches * group.world_size()
        first = micro_batches * group.rank()
        borders = [len(batch) * part // parts for part in range(first, first + micro_batches + 1)]
        self.parts = [tokens_of(policy, batch.part(slice(*ends)), device) for ends in pairwise(borders)]

    def evaluate(self, forward: Any, batch: MicroBatch, index: int) -> tuple[Evaluation, Tensor]:
        """One forward of a micro-batch and of the demonstrations beside it.

        Returns:
            The evaluation of the micro-batch, and the weighted cloning loss () of the demonstrations.
        """
        own, rows = self.parts[index], len(batch.tokens)
        # A credit may have had more observed than the policy reads and demonstrations hold.
        observations = {
            name: torch.cat([batch.observations[name], seen]) for name, seen in own.observations.items()
        }
        tokens = torch.cat([batch.tokens, own.tokens])
        both: Evaluation = forward(observations, tokens, torch.cat([batch.temperature, own.temperature]))
        loss, sums = cloning_loss(self.policy, own, both.part(slice(rows, None)))
        self.sums += sums
        return both.part(slice(rows)), self.coefficient * loss / self.tokens


def cloning_means(sums: Sequence[float]) -> dict[str, float]:
    """Means over tokens of ``SUMS``: cross-entropy, share of tokens whose likeliest bin is right, and the
    distance of that bin's action from the expert's."""
    by_name = dict(zip(SUMS, sums, strict=True))
    tokens = by_name["tokens"]
    return {
        "loss": by_name["loss"] / tokens,
        "accuracy": by_name["hits"] / tokens,
        "action_error": by_name["distance"] / tokens,
    }
