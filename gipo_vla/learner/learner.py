"""One update: DeepSpeed engine, objective, credit, and the statistics that describe it.

The loss of an update is the sum over its valid tokens divided by their number over all micro-batches and
ranks, counted when the batch is drawn. So neither the number of ranks nor the cut into micro-batches
changes a gradient. (DeepSpeed averages over ranks and over the micro-batches of an accumulation, so each
micro-batch's share is multiplied by both before it is handed over.)

Values for GAE come from the very forward that trains: credit of stale data is recomputed with the current
value head at no extra forward. Only the observations that follow segments are valued apart, without gradient:
those of the whole update in one forward, without those at which the task ended.

The host waits for the device twice an update, and never in the middle of a micro-batch: DeepSpeed asks
whether the gradient is finite, and ``end`` fetches everything that describes the update at once.

An update whose loss or gradient is not finite is skipped on all ranks alike (DeepSpeed reduces the norm
over them), counted, and makes no new version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gipo_vla.credit.base import CreditAssigner, CreditBatch, CreditOutput
from gipo_vla.credit.normalization import AdvantageNormalizer, advantage_moments
from gipo_vla.distributed import group
from gipo_vla.learner import engine as engines
from gipo_vla.learner.batch import (
    count_valid,
    following_observations,
    in_reverse,
    split,
    to_device,
)
from gipo_vla.learner.demonstrated import DemonstratedShare, cloning_means
from gipo_vla.learner.micro_batches import even_cut, micro_batch_sizes, rank_share
from gipo_vla.learner.schedule import entropy_factor, learning_rate_factor
from gipo_vla.learner.update import SUMS, Update, metrics_of_sums
from gipo_vla.learner.value_scale import ValueScale
from gipo_vla.objectives.base import (
    BatchObjective,
    ObjectiveSettings,
    TokenObjective,
    adaptive_of,
    needs_proximal,
    objective_loss,
)
from gipo_vla.objectives.diagnostics import staleness_metrics
from gipo_vla.objectives.regularizers import RegularizerSettings, regularizer_loss
from gipo_vla.policies.base import Evaluation, Policy
from gipo_vla.replay.segment import SegmentBatch
from gipo_vla.settings.schema import LearnerSettings


class NonFiniteError(RuntimeError):
    """Too many updates in a row had a loss or gradient that is not finite."""


class Learner:
    """Trains a policy on segments.

    Args:
        policy: the module to train, on its device; DeepSpeed takes over its trainable parameters.
        settings: see ``LearnerSettings``.
        total_iterations: where the schedule of the learning rate ends.
        reward_scale: multiplies rewards.
        reference: frozen initial policy, for ``kl_reference``.
        proximal: the policy that acts, for an objective that needs it.

    Raises:
        UserError: the number of ranks does not divide ``learner.batch_segments``, or see
            ``LearnerSettings.check_credit``.
    """

    def __init__(
        self,
        policy: Policy,
        settings: LearnerSettings,
        objective: ObjectiveSettings | TokenObjective,
        regularizers: RegularizerSettings,
        credit: CreditAssigner,
        normalizer: AdvantageNormalizer,
        device: torch.device,
        total_iterations: int,
        reward_scale: float,
        stored_values: bool = False,
        reference: Policy | None = None,
        proximal: Policy | None = None,
    ) -> None:
        assert isinstance(policy, nn.Module)
        settings.check_credit(credit.needs_values, stored_values)
        self.policy, self.settings, self.device = policy, settings, device
        self.objective, self.given_regularizers = objective, regularizers
        self.regularizers = regularizers
        """Those in force: the entropy coefficient follows the schedule."""
        self.adaptive = adaptive_of(objective)
        self.proximal = proximal if needs_proximal(objective) else None
        self.credit, self.normalizer = credit, normalizer
        self.reward_scale, self.stored_values, self.reference = reward_scale, stored_values, reference
        self.total_iterations = settings.schedule_iterations or total_iterations
        self.world = group.world_size()
        self.segments_per_rank = rank_share(settings.batch_segments, self.world, "learner.batch_segments")
        self.micro_batch_sizes = micro_batch_sizes(self.segments_per_rank, settings.micro_batch_segments)
        """Segments of each micro-batch, the largest first."""
        self.micro_batches = len(self.micro_batch_sizes)
        """Micro-batches an update on each rank."""
        self.value_scale = ValueScale(settings.value_scale)
        self.attempted = 0
        """Updates begun, skipped ones included."""
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.optimizer = engines.build_optimizer(
            policy,
            settings,
            {"policy": settings.policy_learning_rate, "value": settings.value_learning_rate},
            {"policy": settings.policy_gradient_clip, "value": settings.value_gradient_clip},
        )
        self.engine = engines.build_engine(
            policy, self.optimizer, settings, device, self.micro_batch_sizes[0], self.micro_batches
        )

    @property
    def version(self) -> int:
        """Updates that changed the weights."""
        return self.attempted - self.skipped

    @property
    def trains_policy(self) -> bool:
        """The update under way (or the next one) takes the policy's gradient too."""
        warm = self.attempted >= self.settings.value_only_updates
        return warm and (self.attempted + 1) % self.settings.policy_every == 0

    # --------------------------------------------------------------------------------------------- update

    def begin(
        self, segments: SegmentBatch, iteration: int, demonstrated: DemonstratedShare | None = None
    ) -> Update:
        """Take a drawn batch (this rank's share): count it over ranks, move it, make the normaliser ready.

        Args:
            demonstrated: to clone beside it.
        """
        sizes, device, following = self.micro_batch_sizes, self.device, None
        if self.settings.reuse_values and self.credit.needs_values and not self.stored_values:
            segments, following = in_reverse(segments)
        if self.settings.micro_batch_rows is not None:
            sizes = even_cut(segments.length.tolist(), self.micro_batches)
        parts = split(segments, sizes, device, self.reward_scale, self.version, iteration)
        update = Update(
            list(parts),
            self._bootstrap_values(segments, following).split(sizes),
            group.sum_over_ranks(to_device(np.array(count_valid(segments)), device)),
            torch.zeros(len(SUMS), dtype=torch.float64, device=device),
            torch.zeros(3, dtype=torch.float64, device=device),
            torch.zeros((), device=device),
            (0, *accumulate(sizes)),
            demonstrated=demonstrated,
        )
        if following is not None:
            update.following = to_device(following, device)
            update.first_values = torch.zeros(len(segments), device=device)
        of_moments = self.normalizer.mode == "exact" or not self.normalizer.ready
        if of_moments or isinstance(self.objective, BatchObjective):
            self._extra_pass(update, of_moments)
        return update

    @torch.no_grad()
    def _bootstrap_values(self, segments: SegmentBatch, following: np.ndarray | None) -> Tensor:
        """float32 (N,): of what follows the segments; 0 where nothing does, or where another one goes on."""
        values = torch.zeros(len(segments), device=self.device)
        if not self.credit.needs_values or self.stored_values:
            return values
        alone = ~segments.terminated
        if following is not None:
            alone &= following < 0
        going_on = np.flatnonzero(alone)
        most = self.micro_batch_sizes[0] * segments.tokens.shape[1]  # rows of the largest forward
        for start in range(0, len(going_on), most):
            chosen = going_on[start : start + most]
            own = self.policy.value(following_observations(segments, chosen, self.device))
            values[to_device(chosen, self.device)] = own * self.value_scale.now
        return values

    @torch.no_grad()
    def _extra_pass(self, update: Update, of_moments: bool) -> None:
        """A forward over the whole update, for what must be known of all of it before its first backward."""
        moments = torch.zeros(3, dtype=torch.float64, device=self.device)
        advantages, log_ratios = [], []
        for index, batch in enumerate(update.micro_batches):
            evaluation = self.policy.evaluate(batch.observations, batch.tokens, batch.temperature)
            advantages.append(self._credit(update, index, evaluation).advantages)
            log_ratios.append(evaluation.log_probs.float() - batch.behaviour_log_probs)
            moments += advantage_moments(advantages[-1], batch.mask)
        if of_moments:
            update.known_moments = group.sum_over_ranks(moments)
        if not isinstance(self.objective, BatchObjective):
            return
        columns = []
        for batch, own, log_ratio in zip(update.micro_batches, advantages, log_ratios):
            own = batch.rows(self.normalizer.normalize(own, update.known_moments))
            parts = (log_ratio, own[:, None, None].expand_as(log_ratio), batch.token_mask)
            # What stands at a token that is not valid may be anything.
            columns.append(torch.stack([torch.where(batch.token_mask, part, 0.0) for part in parts], dim=-1))
        packed = update.of_all_ranks(torch.cat([part.flatten(0, -2) for part in columns]))
        update.statistics = self.objective.batch_statistics(*packed.unbind(-1))

    @torch.no_grad()
    def _credit(self, update: Update, index: int, evaluation: Evaluation) -> CreditOutput:
        batch, values, bootstrap = update.micro_batches[index], None, None
        if self.credit.needs_values:
            if self.stored_values:
                values, bootstrap = batch.stored_values, batch.stored_bootstrap_values
            else:
                now = evaluation.values.detach().float() * self.value_scale.now
                values = batch.grid(now)
                bootstrap = update.after(index, values[:, 0])
        log_ratios = torch.where(
            batch.token_mask, evaluation.log_probs.detach().float() - batch.behaviour_log_probs, 0.0
        )
        return self.credit.on_batch(
            CreditBatch(
                rewards=batch.rewards,
                executed=batch.executed,
                mask=batch.mask,
                terminated=batch.terminated,
                values=values,
                bootstrap_values=bootstrap,
                log_ratios=batch.grid(log_ratios.sum((1, 2))),
                advantages=batch.stored_advantages,
                truncated=batch.truncated,
            )
        )

    def micro_step(self, update: Update, index: int) -> None:
        """Forward and backward of one micro-batch; the last one of the update also steps the optimizer."""
        batch = update.micro_batches[index]
        evaluation: Evaluation
        cloning: Tensor | float = 0.0
        if update.demonstrated is None:
            evaluation = self.engine(batch.observations, batch.tokens, batch.temperature)
        else:
            evaluation, cloning = update.demonstrated.evaluate(self.engine, batch, index)
        credit = self._credit(update, index, evaluation)
        update.moments += advantage_moments(credit.advantages, batch.mask)
        advantages = batch.rows(self.normalizer.normalize(credit.advantages, update.known_moments))
        transitions, tokens = update.counts.unbind()

        with torch.no_grad():
            reference, proximal = (
                None if other is None else other.evaluate(batch.observations, batch.tokens, batch.temperature)
                for other in (self.reference, self.proximal)
            )
        objective = objective_loss(
            evaluation.log_probs,
            batch.behaviour_log_probs,
            advantages,
            batch.token_mask,
            self.adaptive.settings if self.adaptive else self.objective,
            lag=batch.lag,
            proximal_log_probs=proximal.log_probs if proximal else None,
            statistics=update.statistics,
        )
        regularizer = regularizer_loss(
            evaluation.log_probs,
            evaluation.entropies,
            batch.behaviour_log_probs,
            batch.token_mask,
            self.regularizers,
            logits=evaluation.logits,
            behaviour_logits=batch.behaviour_logits,
            reference_log_probs=reference.log_probs if reference else None,
            reference_logits=reference.logits if reference else None,
        )
        policy_loss = (objective.loss + regularizer.loss).sum() / tokens + cloning
        if not self.trains_policy:
            # Detached: the policy's whole backward pass would only make zeros.
            policy_loss = 0.0 * policy_loss.detach()
        values, scale = evaluation.values, self.value_scale.now
        if credit.value_targets is not None:
            targets = batch.rows(credit.value_targets)
            value_errors = nn.functional.huber_loss(
                values, targets / scale, reduction="none", delta=self.settings.huber_delta
            )
        else:
            # Keeps the value head in the graph, with a gradient of zero.
            targets, value_errors = values.detach() * scale, 0.0 * values
        value_loss = value_errors.sum() / transitions
        loss = policy_loss + self.settings.value_loss_coefficient * value_loss
        # A loss that is not finite can have finite gradients (Huber's; a clamped advantage's): spoil them, so
        # that DeepSpeed finds and skips the update on all ranks.
        loss = loss + 0.0 * loss.detach() * values.sum()
        # Between two of its gradients the policy stands still: AdamW's momentum would carry it on. (Before
        # its first one there is no momentum.)
        between = self.settings.policy_every > 1 and not self.trains_policy
        self.optimizer.resting = frozenset({"policy"} if between else ())
        self.engine.backward(loss * (self.world * self.micro_batches))
        self.engine.step()

        with torch.no_grad():
            values = values * scale
            error = targets - values
            lags = batch.lag_iterations
            update.sums += torch.stack(
                [
                    objective.loss.sum(),
                    value_errors.sum(),
                    regularizer.entropy.sum(),
                    regularizer.kl_behaviour.sum(),
                    regularizer.kl_reference.sum(),
                    lags.sum(),
                    *(v.sum() for x in (advantages, targets, error) for v in (x.double(), x.double() ** 2)),
                    values.sum(),
                ]
            ).double()
            update.lag_max = torch.maximum(update.lag_max, lags.max())
            update.diagnostics.add(objective, advantages, batch.lag, batch.token_mask)

    def end(self, update: Update) -> dict[str, float]:
        """Close an update after its last micro-batch; returns its metrics (the same on every rank).

        Raises:
            NonFiniteError: ``max_nonfinite_updates`` in a row were skipped.
        """
        self.attempted += 1
        if self.engine.skipped_steps > self.skipped:
            self.skipped += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row >= self.settings.max_nonfinite_updates:
                raise NonFiniteError(
                    f"{self.skipped_in_a_row} updates in a row had a loss or gradient that is not finite "
                    "(learner.max_nonfinite_updates): lower learner.policy_learning_rate, or check that "
                    "env.reward_scale keeps returns near 1"
                )
            return {"learner/skipped": 1.0}
        self.skipped_in_a_row = 0
        return {"learner/skipped": 0.0} | self._metrics(update)

    def _metrics(self, update: Update) -> dict[str, float]:
        """Everything that describes an update, fetched from the device at once; moves the normaliser on."""
        # In the order of the groups, also where one of them rested before.
        names = [own["name"] for own in self.optimizer.param_groups]
        norms = {n: self.optimizer.gradient_norms[n] for n in names if n in self.optimizer.gradient_norms}
        cloning = [] if update.demonstrated is None else [update.demonstrated.sums]
        summed = group.sum_over_ranks(torch.cat([update.sums, update.moments, *cloning]))
        tokens_by_column = update.of_all_ranks(update.diagnostics.packed())
        own = update.statistics if update.statistics is not None else summed[:0]
        parts = [
            summed[: len(SUMS)],
            summed[len(SUMS) :][:3] if update.known_moments is None else update.known_moments,
            update.counts.double(),
            group.greatest_over_ranks(update.lag_max).double()[None],
            torch.stack([norm.double() for norm in norms.values()]),
            own.double(),
            summed[len(SUMS) + 3 :],
            tokens_by_column.double().flatten(),
        ]
        flat = torch.cat(parts).cpu()
        sums, moments, counts, lag_max, norms_, statistics, cloned, packed = flat.split(
            [len(p) for p in parts]
        )
        packed = packed.view(tokens_by_column.shape)
        self.normalizer.observe(moments)
        metrics = metrics_of_sums(sums.tolist(), *(int(count) for count in counts.tolist()))
        kl_reference = metrics.pop("policy/kl_reference")
        metrics["staleness/lag_iterations_max"] = float(lag_max)
        if self.reference is not None:
            metrics["policy/kl_reference"] = kl_reference
        if self.value_scale.mode == "running":
            metrics["value/scale"] = self.value_scale.now
            self.value_scale.observe(sums, counts[0])
        metrics |= {f"gradient_norm/{name}": norm for name, norm in zip(norms, norms_.tolist())}
        if isinstance(self.objective, BatchObjective):
            metrics |= self.objective.statistics_metrics(statistics.tolist())
        if self.adaptive is not None:
            metrics |= self.adaptive.metrics()
            self.adaptive.observe(packed)
        if update.demonstrated is not None:
            named = cloning_means(cloned.tolist())
            metrics |= {f"demonstration/{name}": mean for name, mean in named.items()}
        return metrics | staleness_metrics(packed)

    # ------------------------------------------------------------------------------------------- schedule

    def set_progress(self, iterations: float) -> float:
        """Set the learning rates and the entropy coefficient for ``iterations`` done (a fraction is allowed);
        returns the factor of the former."""
        s, given = self.settings, self.given_regularizers
        left = entropy_factor(iterations, self.total_iterations, given.final_entropy_fraction)
        self.regularizers = replace(given, entropy_coefficient=left * given.entropy_coefficient)
        factor = learning_rate_factor(
            iterations,
            s.warmup_iterations,
            self.total_iterations,
            s.schedule,
            s.final_learning_rate_fraction,
        )
        engines.scale_learning_rates(self.optimizer, factor)
        return factor

    # ------------------------------------------------------------------------------------------- run state

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """float32 weights and moments by parameter name, whole on every rank (a collective call)."""
        return engines.optimizer_tensors(self.policy, self.optimizer)

    def load_optimizer_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back ``optimizer_tensors``, at any number of ranks."""
        engines.load_optimizer_tensors(self.policy, self.optimizer, tensors, self.device)

    def counters(self) -> dict[str, Any]:
        """Plain values that go with the tensors."""
        return {
            "attempted": self.attempted,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "total_iterations": self.total_iterations,
            "normalizer": self.normalizer.state_dict(),
            "objective": self.adaptive.state_dict() if self.adaptive else None,
            "value_scale": self.value_scale.state_dict(),
        }

    def load_counters(self, values: Mapping[str, Any]) -> None:
        """Take back ``counters``."""
        self.attempted, self.skipped = values["attempted"], values["skipped"]
        self.skipped_in_a_row = values["skipped_in_a_row"]
        self.total_iterations = values["total_iterations"]
        self.engine.skipped_steps = self.skipped
        self.normalizer.load_state_dict(values["normalizer"])
        # A run that was begun with another objective, or by an older version, has no such state.
        if self.adaptive is not None and values.get("objective"):
            self.adaptive.load_state_dict(values["objective"])
        if "value_scale" in values:  # not in checkpoints of older versions
            self.value_scale.load_state_dict(values["value_scale"])
