"""IGPO: dense rewards from what each step adds to a scorer's confidence.

A scorer gives each state a number b between 0 and 1 (``scorers``). The step from state t to t + 1, of n env
steps, gains

    g_t = gamma^n b_(t+1) - b_t          clipped at +-clip

which is shaping by a potential (Ng et al. 1999): the gains of an episode telescope, so what is optimal stays
optimal; but credit arrives with the step that earned it, also in a group in which every rollout fails.

Gains and outcome are normalised apart, since they have nothing of each other's scale: gains within the group
by the index of the chunk where at least ``samples_per_index`` episodes have one (early and late steps differ
in what can be gained at all), else over the whole group. The advantage is the discounted sum

    base=group    A_t = sum over k >= t of gamma^(...) (coefficient g~_k + [k last] outcome~)
    base=gae      A_t = GAE_t + sum over k >= t of gamma^(...) coefficient g~_k

With base=gae a scorer that equals the critic adds nothing: delta_t of GAE with the critic's own values
contains gamma^n V' - V already. It has to know something else, or earlier.

Source: IGPO, arXiv 2510.14967, with a potential in the place of an answer's probability for success_belief.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gipo_envs.errors import UserError
from gipo_vla.credit import demonstration, instruction, scorers, success_belief
from gipo_vla.credit.base import (
    CreditAssigner,
    CreditBatch,
    CreditContext,
    CreditOutput,
    GroupEpisode,
    SumOverRanks,
    register,
    stored_advantages,
)
from gipo_vla.credit.gae import Gae, GaeSettings
from gipo_vla.credit.group import Outcome, episode_outcome, group_relative
from gipo_vla.credit.normalization import NormalizationMode, check_normalize

Floats = NDArray[np.float64]

SHIPPED = (demonstration, instruction, success_belief)
"""Imported so that their scorers are registered."""

SMALLEST_STD = 1e-3
"""Gains that vary by less than this are not blown up to a standard deviation of 1: a scorer that hardly moves
has nothing to say."""


@dataclass(frozen=True)
class InformationGainSettings:
    """Settings of IGPO."""

    name: Literal["information_gain"] = "information_gain"
    scorer: str = "success_belief"
    """success_belief: learns from this run which states lead to success; where successes are rare but not
    absent. demonstration: likelihood of an expert's actions; where there are demonstrations and hardly any
    success. instruction: a vision-language model's guess of the instruction; where nothing else is known."""
    base: Literal["group", "gae"] = "group"
    """What the gains are added to: group-relative outcomes, or GAE with its value network."""
    coefficient: float = 0.1
    """Weight of the gains, which are normalised step by step: their discounted sum has a standard deviation
    of up to 1 / sqrt(1 - gamma^2), 7 for 0.99 a decision. Beside GAE with a sparse reward (advantages of
    about 0.1) lower it to 0.02."""
    gamma: float = 0.995
    """Discount of an env step, of shaping and sums alike (and of GAE)."""
    gae_lambda: float = 0.95
    """Of base=gae: lambda of a decision."""
    clip: float = 0.2
    """Largest gain of one step, either way: one surprise of the scorer must not outweigh an episode."""
    samples_per_index: int = 8
    """Episodes of the group that must have a chunk of an index for that index to be normalised by itself."""
    outcome: Outcome = "return"
    """Of base=group: what an episode is judged by, as in credit=group."""
    refresh_every: int = 1
    """Iterations for which the scorer is frozen. Longer windows hold back what it learned: a belief that was
    refreshed every 5th iteration lagged behind a policy that improves (docs/results/metaworld_sparse)."""
    belief_input: Literal["landmarks", "state", "features"] = "landmarks"
    """Of success_belief: what it looks at. landmarks: hand, objects, goal, from the simulator. state: the
    observed one. features: the policy's, of images what its vision towers make of them."""
    memory: int = 16_384
    """Of success_belief: states of the latest episodes that it learns from, on each rank."""
    training_steps: int = 10
    """Of success_belief: steps of training at each refresh."""
    demonstrations: str | None = None
    """Of demonstration: the ``demonstrations/`` folder of a run of ``python -m gipo_vla.sft``."""
    match: Literal["landmarks", "state"] = "state"
    """Of demonstration: what makes two states near. landmarks must have been recorded
    (``env.observations=[state,landmarks]``; a policy that is not to see them: ``policy.inputs=[state]``)."""
    normalize: NormalizationMode = "running"
    """Of the sum, over batches."""

    def __post_init__(self) -> None:
        scorers.get(self.scorer)  # refuses what there is not
        for key, value, known in (
            ("base", self.base, ("group", "gae")),
            ("outcome", self.outcome, ("return", "success_once")),
            ("belief_input", self.belief_input, ("landmarks", "state", "features")),
            ("match", self.match, ("landmarks", "state")),
        ):
            if value not in known:
                raise UserError(f"credit.{key} is {value}: it must be one of {', '.join(known)}")
        for key, least, integer in (
            ("samples_per_index", 2, self.samples_per_index),
            ("refresh_every", 1, self.refresh_every),
            ("memory", 1, self.memory),
            ("training_steps", 1, self.training_steps),
        ):
            if integer < least:
                raise UserError(f"credit.{key} is {integer}: it must be at least {least}")
        if not self.clip > 0:
            raise UserError(f"credit.clip is {self.clip}: it must be above 0; 0.2 is usual")
        GaeSettings(gamma=self.gamma, gae_lambda=self.gae_lambda)  # refuses what it would refuse
        if self.scorer == "demonstration" and self.demonstrations is None:
            raise UserError(
                "credit.scorer=demonstration needs some: set credit.demonstrations to the demonstrations/ of "
                "a run of python -m gipo_vla.sft"
            )
        check_normalize(self.normalize)

    @property
    def needs_landmarks(self) -> bool:
        """Whether the environment has to be asked for them."""
        source = {"success_belief": self.belief_input, "demonstration": self.match}
        return source.get(self.scorer) == "landmarks"


def information_gain(
    scores: Floats, executed: NDArray[np.integer[Any]], gamma: float, clip: float = np.inf
) -> Floats:
    """Gains (T,) of the steps between the scores (T + 1,) of an episode's states."""
    gains: Floats = np.clip(gamma**executed * scores[1:] - scores[:-1], -clip, clip)
    return gains


def standardized_by_index(gains: Sequence[Floats], least: int) -> list[Floats]:
    """Gains of a group, each (T,), with mean 0 and standard deviation 1 among those of the same index.

    Indices that fewer than ``least`` episodes reach are normalised by mean and deviation of the whole group.
    """
    values = np.concatenate(gains)
    index = np.concatenate([np.arange(len(own)) for own in gains])
    count = np.bincount(index)
    enough = count >= least
    # Measured from one of them, so that equal gains differ by exactly 0.
    shifted = values - values[0]
    mean = np.where(enough, np.bincount(index, shifted) / count, shifted.mean())
    centred = shifted - mean[index]
    variance = np.bincount(index, centred**2) / np.maximum(count - 1, 1)
    overall = (shifted - shifted.mean()).std(ddof=1) if len(values) > 1 else 0.0
    std = np.maximum(np.where(enough, np.sqrt(variance), overall), SMALLEST_STD)
    return np.split(centred / std[index], np.cumsum([len(own) for own in gains])[:-1])


def discounted_sums(rewards: Sequence[Floats], discounts: Sequence[Floats]) -> list[Floats]:
    """Sums to the end S_t = r_t + discount_t S_(t+1) of episodes, each (T,)."""
    longest = max(len(own) for own in rewards)
    padded, factors = np.zeros((2, longest, len(rewards)))
    for number, (own, discount) in enumerate(zip(rewards, discounts, strict=True)):
        padded[: len(own), number], factors[: len(own), number] = own, discount
    for t in reversed(range(longest - 1)):
        padded[t] += factors[t] * padded[t + 1]
    return [padded[: len(own), number] for number, own in enumerate(rewards)]


@register("information_gain")
class InformationGain(CreditAssigner):
    """IGPO as a credit. Its state is that of its scorer."""

    needs_groups = True

    def __init__(self, settings: InformationGainSettings) -> None:
        self.settings = settings
        self._gae = Gae(GaeSettings(gamma=settings.gamma, gae_lambda=settings.gae_lambda))
        self._scorer: scorers.Scorer | None = None
        self._iterations = 0
        self._sums = dict.fromkeys(("steps", "gain", "gain_squared", "clipped"), 0.0)

    def prepare(self, context: CreditContext) -> None:
        self._scorer = scorers.create(self.settings.scorer, self.settings, context)

    @property
    def scorer(self) -> scorers.Scorer:
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
        self._iterations, self._sums = int(state["iterations"]), dict(state["sums"])
        self.scorer.load_state_dict(state["scorer"])
