"""Success belief: a small network's estimate that the episode of a state succeeds.

It learns from the latest episodes of this run, whatever policy acted them, and only after it has scored them
(so its judgement of a group never rests on that group). Where an episode has really ended there is nothing
to estimate: the belief of its last state is 1 or 0.

Until it has seen successes and failures it says nothing: a belief of one outcome is noise around a constant,
and normalising that noise would make advantages of it.

How well calibrated it is shows before it is trained on the same episodes: the Brier score (mean squared error
of the estimate) and the expected calibration error (mean distance of estimate and frequency over ten bins).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gipo_envs.errors import UserError
from gipo_vla.credit.base import FEATURES, CreditContext, GroupEpisode, SumOverRanks
from gipo_vla.credit.information_gain.scorers import Scorer, ScorerSettings, Scores, register
from gipo_vla.policies.base import HasFeatures

WIDTH = 64
LEARNING_RATE = 3e-3
BATCH = 256
"""States of each rank in one step of training."""
BINS = 10
"""Bins of the expected calibration error."""


@register
@dataclass(frozen=True)
class SuccessBeliefSettings(ScorerSettings):
    """A small network, trained on this run's episodes, that estimates from a state whether its episode
    succeeds."""

    movable: ClassVar[tuple[str, ...]] = ("memory", "training_steps")

    name: Literal["success_belief"] = "success_belief"
    input: Literal["landmarks", "state", "features"] = "landmarks"
    """What the network looks at. landmarks: hand, objects, goal, from the simulator. state: the observed one.
    features: the policy's, which of images is what its vision towers make of them."""
    memory: int = 16_384
    """States of the latest episodes that it learns from, on each rank."""
    training_steps: int = 10
    """Steps of training at each refresh."""

    def __post_init__(self) -> None:
        for key, value in (("memory", self.memory), ("training_steps", self.training_steps)):
            if value < 1:
                raise UserError(f"credit.scorer.{key} is {value}: it must be at least 1")

    @property
    def needs_landmarks(self) -> bool:
        return self.input == "landmarks"

    def build(self, context: CreditContext) -> Scorer:
        return SuccessBelief(self, context)


class SuccessBelief(Scorer):
    """See the module. The network is small and stays on the CPU."""

    def __init__(self, settings: SuccessBeliefSettings, context: CreditContext) -> None:
        self.settings, self.seed = settings, context.seed
        self.version = 0
        self.tasks = len(context.spec.tasks)
        width = _input_width(settings.input, context) + (self.tasks if self.tasks > 1 else 0)
        self._network: nn.Sequential | None = None
        self._mean = self._std = torch.empty(0)
        self._inputs = np.empty((0, width), np.float32)
        self._outcomes: NDArray[np.float32] = np.empty(0, np.float32)
        self._calibration = np.zeros((3, BINS))
        """Counts, sums of beliefs and sums of outcomes, by bin of the belief."""
        self._squared_error = 0.0

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.settings.input,)

    # ------------------------------------------------------------------------------------------- scoring

    @torch.no_grad()
    def score(self, episodes: Sequence[GroupEpisode]) -> list[Scores] | None:
        if self.version == 0:
            return None
        rows = torch.from_numpy(np.concatenate([self._rows(episode) for episode in episodes]))
        beliefs = torch.sigmoid(self._logits(rows)).double().numpy()
        scores = np.split(beliefs, np.cumsum([len(episode) + 1 for episode in episodes])[:-1])
        for episode, own in zip(episodes, scores):
            if episode.terminated:
                own[-1] = float(episode.first_success is not None)
        return scores

    def _rows(self, episode: GroupEpisode) -> NDArray[np.float32]:
        """What the network sees (T + 1, F): the input, and which task it is where there are several."""
        rows = episode.observations[self.settings.input].astype(np.float32)
        if self.tasks == 1:
            return rows
        task = np.zeros((len(rows), self.tasks), np.float32)
        task[:, episode.task] = 1.0
        return np.concatenate([rows, task], axis=1)

    def _logits(self, rows: Tensor) -> Tensor:
        assert self._network is not None
        return self._network((rows - self._mean) / self._std).squeeze(-1)

    # ------------------------------------------------------------------------------------------ learning

    def observe(self, episodes: Sequence[GroupEpisode], scores: Sequence[Scores] | None) -> None:
        rows = [self._rows(episode) for episode in episodes]
        ends = [np.float32(episode.first_success is not None) for episode in episodes]
        outcomes = [np.full(len(own), end, np.float32) for own, end in zip(rows, ends)]
        if scores is not None:
            # Not the last state of what has ended: that score was no estimate.
            counts = [len(own) - int(episode.terminated) for own, episode in zip(scores, episodes)]
            self._calibrate(
                np.concatenate([own[:n] for own, n in zip(scores, counts)]),
                np.concatenate([own[:n] for own, n in zip(outcomes, counts)]).astype(np.float64),
            )
        self._inputs = np.concatenate([self._inputs, *rows])[-self.settings.memory :]
        self._outcomes = np.concatenate([self._outcomes, *outcomes])[-self.settings.memory :]

    def _calibrate(self, beliefs: Scores, outcomes: Scores) -> None:
        place = np.minimum((beliefs * BINS).astype(np.int64), BINS - 1)
        for row, weights in enumerate((np.ones_like(beliefs), beliefs, outcomes)):
            self._calibration[row] += np.bincount(place, weights, BINS)
        self._squared_error += float(((beliefs - outcomes) ** 2).sum())

    def refresh(self, sum_over_ranks: SumOverRanks) -> None:
        """Train on what is remembered, on all ranks together; where only one outcome was ever seen, on
        none."""
        inputs, outcomes = torch.from_numpy(self._inputs), torch.from_numpy(self._outcomes)
        own = torch.tensor([len(outcomes), outcomes.sum()], dtype=torch.float64)
        count, successes = sum_over_ranks(own).tolist()
        if not 0 < successes < count:
            return
        self._measure(inputs, sum_over_ranks)
        network = self._network = self._network or self._build()
        network.requires_grad_(True)
        optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
        # Every rank draws the same places among its own states: nothing of it needs to be kept.
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.version]))
        parameters = list(network.parameters())
        for _ in range(self.settings.training_steps):
            chosen = torch.from_numpy(rng.random(BATCH) * len(outcomes)).long()[: len(outcomes)]
            losses = nn.functional.binary_cross_entropy_with_logits(
                self._logits(inputs[chosen]), outcomes[chosen], reduction="sum"
            )
            gradients = torch.autograd.grad(losses, parameters)
            total = sum_over_ranks(
                torch.cat([*(g.reshape(-1) for g in gradients), torch.tensor([float(len(chosen))])])
            )
            mean = total[:-1] / total[-1]
            for parameter, gradient in zip(parameters, mean.split([p.numel() for p in parameters])):
                parameter.grad = gradient.reshape(parameter.shape)
            optimizer.step()
        network.requires_grad_(False)
        self.version += 1

    def _measure(self, inputs: Tensor, sum_over_ranks: SumOverRanks) -> None:
        """Mean and standard deviation of the inputs, over all ranks."""
        rows = inputs.double()
        own = torch.cat([rows.sum(0), rows.square().sum(0), rows.new_tensor([len(rows)])])
        total = sum_over_ranks(own)
        sums, squares = total[:-1].chunk(2)
        mean = sums / total[-1]
        std = (squares / total[-1] - mean.square()).clamp(min=0).sqrt()
        self._mean = mean.float()
        # What never varies must not be blown up when it does for the first time.
        self._std = torch.where(std > 1e-6, std, 1.0).float()

    def _build(self) -> nn.Sequential:
        """The same on every rank, and nothing of torch's own generator is drawn."""
        generator = torch.Generator().manual_seed(self.seed)
        layers: list[nn.Module] = []
        for inputs, outputs in ((self._inputs.shape[1], WIDTH), (WIDTH, WIDTH), (WIDTH, 1)):
            layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.Tanh()]
        return nn.Sequential(*layers[:-1]).requires_grad_(False)

    # ------------------------------------------------------------------------------- diagnostics and state

    def take_sums(self) -> dict[str, float]:
        sums = {"squared_error": self._squared_error}
        for name, row in zip(("count", "belief", "outcome"), self._calibration.tolist()):
            sums |= {f"{name}_{number}": value for number, value in enumerate(row)}
        self._calibration[:], self._squared_error = 0.0, 0.0
        return sums

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float | None]:
        count, belief, outcome = (
            np.array([sums[f"{name}_{number}"] for number in range(BINS)])
            for name in ("count", "belief", "outcome")
        )
        total = count.sum()
        known = {
            "credit/belief_brier": sums["squared_error"],
            "credit/belief_calibration_error": float(np.abs(belief - outcome).sum()),
            "credit/belief_mean": float(belief.sum()),
            "credit/belief_outcome_mean": float(outcome.sum()),
        }
        return {name: float(value / total) if total else None for name, value in known.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "network": {} if self._network is None else dict(self._network.state_dict()),
            "mean": self._mean,
            "std": self._std,
            "inputs": self._inputs,
            "outcomes": self._outcomes,
            "calibration": self._calibration,
            "squared_error": self._squared_error,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.version = int(state["version"])
        self._mean, self._std = state["mean"].clone(), state["std"].clone()
        self._inputs, self._outcomes, self._calibration = (
            np.array(state[name]) for name in ("inputs", "outcomes", "calibration")
        )
        self._network = None
        if state["network"]:
            self._network = self._build()
            self._network.load_state_dict(state["network"])
        self._squared_error = float(state["squared_error"])


def _input_width(source: str, context: CreditContext) -> int:
    """Numbers that describe a state; also where this rank has seen none."""
    if source == FEATURES:
        if not isinstance(context.policy, HasFeatures):
            raise UserError(
                "credit.scorer.input is features, but this policy has none: use landmarks or state"
            )
        return context.policy.feature_size
    if source not in context.spec.observation:
        raise UserError(
            f"credit.scorer.input is {source}, but this environment observes no {source}: set it to "
            "features, or add it to env.observations"
        )
    return context.spec.observation[source].shape[0]
