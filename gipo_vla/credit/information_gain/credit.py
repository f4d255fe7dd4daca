"""IGPO: dense rewards from what each step adds to a scorer's confidence.

A scorer gives each state a number b between 0 and 1 (``scorers``). The step from state t to t + 1, of n env
steps, gains

    g_t = gamma^n b_(t+1) - b_t          clipped at +-clip

which is shaping by a potential (Ng et al. 1999): the gains of an episode telescope to gamma^(all steps) b_T -
b_0, and credit arrives with the step that earned it. Where every episode ends by a termination, b_T is the
outcome, and what is optimal stays optimal (before clipping and normalising). *At a step limit it is not
covered*: b_T is then the scorer's estimate for the last state, and a run maximises success plus
``coefficient`` times the belief in the states at which time ran out. That is wanted: it is all that a group
in which every rollout fails can learn from (with b_T = 0 there, the sums of such a group would be -b_t,
whatever was done). It is bounded: a failure's gains sum to less than a success's of the same length, since
b_T <= 1.

Gains and outcome are normalised apart, since they have nothing of each other's scale: from a gain is taken
the mean of its chunk index (early and late steps differ in what can be gained at all), and all are divided by
the one standard deviation that is left (``standardized_by_index``). The advantage is the discounted sum

    base=group    A_t = sum over k >= t of gamma^(...) (coefficient g~_k + [k last] outcome~)
    base=gae      A_t = GAE_t + sum over k >= t of gamma^(...) coefficient g~_k

With base=gae a scorer that equals the critic adds nothing: delta_t of GAE with the critic's own values
contains gamma^n V' - V already. It has to know something else, or earlier.

Source: IGPO, arXiv 2510.14967. What is ours: success_belief asks a network of its own on landmarks where the
source asks the acting model for the probability of the right answer; gains are weighed, clipped and
discounted as a potential's, where the source takes plain differences; and the mean of each index, where the
source takes one mean and one deviation of all gains of a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainValidator

from gipo_envs.errors import UserError
from gipo_vla.credit.base import (
    CreditAssigner,
    CreditBatch,
    CreditContext,
    CreditOutput,
    CreditSettings,
    GroupEpisode,
    SumOverRanks,
    register,
    stored_advantages,
)
from gipo_vla.credit.gae import Gae, GaeSettings
from gipo_vla.credit.group import Outcome, episode_outcome, group_relative
from gipo_vla.credit.information_gain.scorers import Scorer, ScorerSettings
from gipo_vla.credit.information_gain.success_belief import SuccessBeliefSettings
from gipo_vla.credit.normalization import NormalizationMode, check_normalize
from gipo_vla.settings.registry import scorers as scorer_registry

Floats = NDArray[np.float64]

SMALLEST_STD = 1e-3
"""Gains that vary by less than this are not blown up to a standard deviation of 1: a scorer that hardly moves
has nothing to say."""


@register
@dataclass(frozen=True)
class InformationGainSettings(CreditSettings):
    """IGPO: dense rewards from what each step adds to a scorer's confidence in success."""

    needs_groups: ClassVar[bool] = True
    sets: ClassVar[Mapping[str, Any]] = {"rollout.group_size": 8}
    fixed: ClassVar[tuple[str, ...]] = ("name", "scorer")

    name: Literal["information_gain"] = "information_gain"
    scorer: Annotated[ScorerSettings, PlainValidator(scorer_registry.validate)] = field(
        default_factory=SuccessBeliefSettings
    )
    """success_belief: learns from this run which states lead to success; where successes are rare but not
    absent. demonstration: likelihood of an expert's actions; where there are demonstrations and hardly any
    success. instruction: a vision-language model's guess of the instruction; where nothing else is known."""
    base: Literal["group", "gae"] = "group"
    """The credit that the gains are added to: group-relative outcomes, or GAE with its value network."""
    coefficient: float = 0.1
    """Weight of the gains, which are normalised: their discounted sum has a standard deviation
    of up to 1 / sqrt(1 - gamma^2), 7 for 0.99 a decision. Beside GAE with a sparse reward (advantages of
    about 0.1) lower it to 0.02."""
    gamma: float = 0.995
    """Discount of an env step, of shaping and sums alike (and of GAE)."""
    gae_lambda: float = 0.95
    """Lambda of a decision, with base=gae."""
    clip: float = 0.2
    """Largest gain of one step, either way: one surprise of the scorer must not outweigh an episode."""
    samples_per_index: int = 8
    """Episodes of which the mean gain of a chunk index is made, at least: the mean of the whole group stands
    for those that ended earlier. Far above the group's size, gains are compared over the group alone."""
    outcome: Outcome = "return"
    """What an episode is judged by with base=group, as in credit=group."""
    refresh_every: int = 1
    """Iterations for which the scorer is frozen. Longer windows hold back what it learned: a belief that was
    refreshed every 5th iteration lagged behind a policy that improves (docs/results/metaworld_sparse)."""
    normalize: NormalizationMode = "running"
    """Normalisation of the sum, over batches; with base=group it scales and does not shift."""

    def __post_init__(self) -> None:
        for key, least, integer in (
            ("samples_per_index", 2, self.samples_per_index),
            ("refresh_every", 1, self.refresh_every),
        ):
            if integer < least:
                raise UserError(f"credit.{key} is {integer}: it must be at least {least}")
        if not self.clip > 0:
            raise UserError(f"credit.clip is {self.clip}: it must be above 0; 0.2 is usual")
        GaeSettings(gamma=self.gamma, gae_lambda=self.gae_lambda)  # refuses what it would refuse
        check_normalize(self.normalize)

    def build(self) -> CreditAssigner:
        return InformationGain(self)

    @property
    def shifts_advantages(self) -> bool:
        return self.base == "gae"

    @property
    def needs_landmarks(self) -> bool:
        return self.scorer.needs_landmarks

    def per_action(self, action_repeat: int) -> Self:
        return replace(self, gamma=self.gamma**action_repeat)


def information_gain(
    scores: Floats, executed: NDArray[np.integer[Any]], gamma: float, clip: float = np.inf
) -> Floats:
    """Gains (T,) of the steps between the scores (T + 1,) of an episode's states."""
    gains: Floats = np.clip(gamma**executed * scores[1:] - scores[:-1], -clip, clip)
    return gains


def standardized_by_index(gains: Sequence[Floats], samples: int) -> list[Floats]:
    """Gains of a group, each (T,), less the mean of their index, over the standard deviation of what is left.

    An index's mean is of the episodes that have one, and where those are fewer than ``samples``, the mean of
    the whole group's gains stands for each that is missing: with n of them, mean_i = (n m_i + (samples - n)
    m) / samples. So an episode that ends moves the statistics of the others by its own share. The deviation
    is one for the group: where a gain stands, early or late, does not change what it is worth.
    """
    values = np.concatenate(gains)
    index = np.concatenate([np.arange(len(own)) for own in gains])
    count = np.bincount(index)
    # Measured from one of them, so that equal gains differ by exactly 0.
    shifted = values - values[0]
    missing = np.maximum(samples - count, 0)
    mean = (np.bincount(index, shifted) + missing * shifted.mean()) / (count + missing)
    centred = shifted - mean[index]
    std = np.sqrt((centred**2).sum() / max(len(values) - 1, 1))
    return np.split(centred / max(std, SMALLEST_STD), np.cumsum([len(own) for own in gains])[:-1])


def discounted_sums(rewards: Sequence[Floats], discounts: Sequence[Floats]) -> list[Floats]:
    """Sums to the end S_t = r_t + discount_t S_(t+1) of episodes, each (T,)."""
    longest = max(len(own) for own in rewards)
    padded, factors = np.zeros((2, longest, len(rewards)))
    for number, (own, discount) in enumerate(zip(rewards, discounts, strict=True)):
        padded[: len(own), number], factors[: len(own), number] = own, discount
    for t in reversed(range(longest - 1)):
        padded[t] += factors[t] * padded[t + 1]
    return [padded[: len(own), number] for number, own in enumerate(rewards)]


class InformationGain(CreditAssigner):
    """IGPO as a credit. Its state is that of its scorer."""

    needs_groups = True

    def __init__(self, settings: InformationGainSettings) -> None:
        self.settings = settings
        self._gae = Gae(GaeSettings(gamma=settings.gamma, gae_lambda=settings.gae_lambda))
        self._scorer: Scorer | None = None
        self._iterations = 0
        self._sums = dict.fromkeys(("steps", "gain", "gain_squared", "clipped"), 0.0)

    def prepare(self, context: CreditContext) -> None:
        self._scorer = self.settings.scorer.build(context)

    @property
    def scorer(self) -> Scorer:
        """There is one as soon as the run is known."""
        assert self._scorer is not None, "call prepare first"
        return self._scorer

    @property
    def needs_values(self) -> bool:
        return self.settings.base == "gae"

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.scorer.inputs

    def on_group(
        self, episodes: Sequence[GroupEpisode], older: Sequence[GroupEpisode] = ()
    ) -> list[NDArray[np.float32]]:
        """Advantages (T,) of each episode; with base=gae what is to be added to GAE's."""
        settings = self.settings
        scores = self.scorer.score(episodes)
        rewards = [np.zeros(len(episode)) for episode in episodes]
        if scores is not None:
            gains = self._gains(episodes, scores)
            normalized = standardized_by_index(gains, settings.samples_per_index)
            rewards = [settings.coefficient * own for own in normalized]
        if settings.base == "group":
            outcomes = np.array([episode_outcome(episode, settings.outcome) for episode in episodes])
            for own, relative in zip(rewards, group_relative(outcomes, normalize_std=True)):
                own[-1] += relative
        self.scorer.observe(episodes, scores)
        steps = [episode.executed.astype(np.float64) for episode in episodes]
        sums = discounted_sums(rewards, [np.power(settings.gamma, own) for own in steps])
        return [own.astype(np.float32) for own in sums]

    def _gains(self, episodes: Sequence[GroupEpisode], scores: Sequence[Floats]) -> list[Floats]:
        """The clipped gains, counted for the metrics."""
        settings = self.settings
        exact = [
            information_gain(own, episode.executed, settings.gamma) for own, episode in zip(scores, episodes)
        ]
        values = np.concatenate(exact)
        clipped: Floats = np.clip(values, -settings.clip, settings.clip)
        for name, value in (
            ("steps", len(values)),
            ("gain", values.sum()),
            ("gain_squared", (values**2).sum()),
            ("clipped", (values != clipped).sum()),
        ):
            self._sums[name] += float(value)
        return np.split(clipped, np.cumsum([len(own) for own in exact])[:-1])

    def outcome(self, episode: GroupEpisode) -> float:
        """By ``credit.outcome``."""
        return episode_outcome(episode, self.settings.outcome)

    def on_batch(self, batch: CreditBatch) -> CreditOutput:
        """The stored advantages; with base=gae added to GAE's, whose value targets stay."""
        stored = stored_advantages(batch)
        if self.settings.base == "group":
            return CreditOutput(stored, None)
        output = self._gae.on_batch(batch)
        return CreditOutput(output.advantages + stored, output.value_targets)

    def end_iteration(self, sum_over_ranks: SumOverRanks) -> None:
        self._iterations += 1
        if self._iterations % self.settings.refresh_every == 0:
            self.scorer.refresh(sum_over_ranks)

    def take_sums(self) -> dict[str, float]:
        taken, self._sums = self._sums, dict.fromkeys(self._sums, 0.0)
        return taken | self.scorer.take_sums()

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float | None]:
        steps = sums["steps"]
        row: dict[str, float | None] = dict.fromkeys(
            ("credit/gain_mean", "credit/gain_std", "credit/clipped_share")
        )
        if steps:
            mean = sums["gain"] / steps
            row["credit/gain_mean"] = mean
            row["credit/gain_std"] = float(np.sqrt(max(sums["gain_squared"] / steps - mean**2, 0.0)))
            row["credit/clipped_share"] = sums["clipped"] / steps
        return row | {"credit/scorer_version": self.scorer.version} | self.scorer.metrics(sums)

    def state_dict(self) -> dict[str, Any]:
        return {"iterations": self._iterations, "sums": self._sums, "scorer": self.scorer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._iterations = int(state["iterations"])
        self._sums = {name: float(state["sums"].get(name, 0.0)) for name in self._sums}
        self.scorer.load_state_dict(state["scorer"])
