"""Behaviour cloning: cross-entropy of the expert's action tokens, in the engine that also trains by
reinforcement.

The loss of an update is the sum of -log p over the valid tokens of the batch divided by their number over
all micro-batches and ranks, as in ``gipo_vla.learner``, so neither changes a gradient. The value head gets a
gradient of zero and stays, to the bit, as it was: there is no reward to learn it from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from gipo_vla.distributed import group
from gipo_vla.learner import engine as engines
from gipo_vla.learner.demonstrated import Demonstrated, cloning_loss, cloning_means, tokens_of
from gipo_vla.learner.learner import NonFiniteError
from gipo_vla.learner.micro_batches import micro_batch_sizes, rank_share
from gipo_vla.learner.schedule import learning_rate_factor
from gipo_vla.policies.base import Evaluation, Policy
from gipo_vla.settings.cloning import CloningLearnerSettings, CloningSettings


class Cloner:
    """Clones a policy, update by update.

    Args:
        policy: on its device; DeepSpeed takes over its trainable parameters.

    Raises:
        UserError: the number of ranks does not divide ``sft.batch_size``.
    """

    def __init__(
        self,
        policy: Policy,
        settings: CloningLearnerSettings,
        cloning: CloningSettings,
        device: torch.device,
    ) -> None:
        assert isinstance(policy, nn.Module)
        self.policy, self.settings, self.cloning, self.device = policy, settings, cloning, device
        self.rank, self.world = group.rank(), group.world_size()
        self.examples_per_rank = rank_share(cloning.batch_size, self.world, "sft.batch_size")
        self.micro_batch_sizes = micro_batch_sizes(self.examples_per_rank, cloning.micro_batch_size)
        """Examples of each micro-batch, the largest first."""
        self.micro_batches = len(self.micro_batch_sizes)
        self.attempted = self.skipped = self.skipped_in_a_row = 0
        self.optimizer = engines.build_optimizer(
            policy,
            settings,
            # The value's gradient is zero, whatever its rate.
            dict.fromkeys(("policy", "value"), settings.policy_learning_rate),
            dict.fromkeys(("policy", "value"), settings.policy_gradient_clip),
        )
        self.engine = engines.build_engine(
            policy, self.optimizer, settings, device, self.micro_batch_sizes[0], self.micro_batches
        )

    def update(self, batch: Demonstrated) -> dict[str, float]:
        """One update from a global batch, of which this rank takes its share; returns its metrics (the same
        on every rank).

        Raises:
            NonFiniteError: ``learner.max_nonfinite_updates`` in a row had no finite loss or gradient.
        """
        factor = self._set_learning_rates()
        tokens = int(batch.valid.sum()) * self.policy.action_dims
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        for part in self._own_parts(batch):
            loss, values, own = self._evaluate(part, self.engine)
            # The value head stays in the graph, with a gradient of zero.
            loss = loss / tokens + 0.0 * values.sum()
            self.engine.backward(loss * (self.world * self.micro_batches))
            self.engine.step()
            sums += own
        self._count()
        norm = self.optimizer.gradient_norms.get("policy", sums.new_zeros(()))
        *totals, norm_ = torch.cat([group.sum_over_ranks(sums), norm[None]]).cpu().tolist()
        norms = {"gradient_norm/policy": norm_, "learner/learning_rate_factor": factor}
        return _metrics(totals, "train") | norms

    @torch.no_grad()
    def validate(self, batches: Sequence[Demonstrated]) -> dict[str, float]:
        """Metrics over held-out examples, without training; ranks take turns (a collective call)."""
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        for batch in batches[self.rank :: self.world]:
            sums += self._evaluate(batch, self.policy.evaluate)[2]
        return _metrics(group.sum_over_ranks(sums).tolist(), "validation")

    def _own_parts(self, batch: Demonstrated) -> Iterator[Demonstrated]:
        first = self.rank * self.examples_per_rank
        for stop, size in zip(accumulate(self.micro_batch_sizes), self.micro_batch_sizes):
            yield batch.part(slice(first + stop - size, first + stop))

    def _evaluate(self, batch: Demonstrated, forward: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Loss (), summed over tokens; values (B,); the sums (4,) float64 that metrics are made of."""
        rows = tokens_of(self.policy, batch, self.device)
        evaluation: Evaluation = forward(rows.observations, rows.tokens, rows.temperature)
        loss, sums = cloning_loss(self.policy, rows, evaluation)
        return loss, evaluation.values, sums

    def _set_learning_rates(self) -> float:
        settings = self.settings
        factor = learning_rate_factor(
            max(self.attempted, 1),  # the first update already moves
            settings.warmup_steps,
            self.cloning.steps,
            settings.schedule,
            settings.final_learning_rate_fraction,
        )
        engines.scale_learning_rates(self.optimizer, factor)
        return factor

    def _count(self) -> None:
        self.attempted += 1
        if self.engine.skipped_steps == self.skipped:
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.settings.max_nonfinite_updates:
            raise NonFiniteError(
                f"{self.skipped_in_a_row} updates in a row had a loss or gradient that is not finite "
                "(learner.max_nonfinite_updates): lower learner.policy_learning_rate"
            )

    # ------------------------------------------------------------------------------------------- run state

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """float32 weights and moments by parameter name (a collective call)."""
        return engines.optimizer_tensors(self.policy, self.optimizer)

    def counters(self) -> dict[str, int]:
        """Plain values that go with the tensors."""
        return {
            "attempted": self.attempted,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load(self, tensors: Mapping[str, Tensor], counters: Mapping[str, int]) -> None:
        """Take back ``optimizer_tensors`` and ``counters``."""
        engines.load_optimizer_tensors(self.policy, self.optimizer, tensors, self.device)
        self.attempted, self.skipped = counters["attempted"], counters["skipped"]
        self.skipped_in_a_row = counters["skipped_in_a_row"]
        self.engine.skipped_steps = self.skipped


def _metrics(sums: Sequence[float], of: str) -> dict[str, float]:
    return {f"{name}/{of}": value for name, value in cloning_means(sums).items()}
