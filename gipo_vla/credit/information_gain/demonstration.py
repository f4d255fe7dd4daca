"""Demonstration action: how likely is what an expert did in such a state?

For each state the nearest demonstrated one of the same task is looked up, and the expert's chunk of actions
there is scored by a frozen copy of the policy:

    p = exp(mean over the chunk's tokens of log pi(expert's token | what the rollout sees))

A step gains where it led to a state in which the policy knows what the expert would do. The copy is taken
when the run begins and again at each refresh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gipo_envs.errors import UserError
from gipo_vla.credit.base import CreditContext, GroupEpisode, SumOverRanks
from gipo_vla.credit.information_gain.scorers import Scorer, ScorerSettings, Scores, register
from gipo_vla.policies.base import copy_trainable

ROWS_AT_A_TIME = 64


@register
@dataclass(frozen=True)
class DemonstrationScorerSettings(ScorerSettings):
    """The likelihood of what an expert did in the nearest demonstrated state."""

    movable: ClassVar[tuple[str, ...]] = ("demonstrations",)

    name: Literal["demonstration"] = "demonstration"
    demonstrations: str | None = None
    """The ``demonstrations/`` folder of a run of ``python -m gipo_vla.sft``. Required."""
    match: Literal["landmarks", "state"] = "state"
    """What makes two states near. landmarks must have been recorded
    (``env.observations=[state,landmarks]``)."""

    def __post_init__(self) -> None:
        if self.demonstrations is None:
            raise UserError(
                "credit.scorer=demonstration needs demonstrations: set credit.scorer.demonstrations to the "
                "demonstrations/ of a run of python -m gipo_vla.sft"
            )

    @property
    def needs_landmarks(self) -> bool:
        return self.match == "landmarks"

    def build(self, context: CreditContext) -> Scorer:
        return DemonstrationScorer(self, context)


class DemonstrationScorer(Scorer):
    """See the module."""

    def __init__(self, settings: DemonstrationScorerSettings, context: CreditContext) -> None:
        assert isinstance(context.policy, nn.Module)
        self.version = 0
        self.match = settings.match
        if self.match not in context.spec.observation:
            known = [name for name in ("landmarks", "state") if name in context.spec.observation]
            raise UserError(
                f"credit.scorer.match is {self.match}, but this environment observes no {self.match}: set it "
                f"to one of {', '.join(known)}"
            )
        self.policy, self.device = context.policy, context.device
        self._trainable = [name for name, p in context.policy.named_parameters() if p.requires_grad]
        self._frozen: Any = context.policy.twin()
        """A policy, and a module."""
        self._frozen.requires_grad_(False)
        self._seen = tuple(context.spec.observation)
        assert context.read_demonstrations is not None and settings.demonstrations is not None
        demonstrations = context.read_demonstrations(Path(settings.demonstrations), self.match)
        places = demonstrations.observations[self.match].astype(np.float32)
        # Landmarks are metres and truths, and as they are they say what is near; a state's numbers are of
        # any kind.
        self._scale = np.ones(places.shape[1], np.float32)
        if self.match == "state":
            self._scale = 1.0 / np.maximum(places.std(axis=0), 1e-3)
        self._places: dict[int, Tensor] = {}
        """Demonstrated states by task."""
        self._actions: dict[int, Tensor] = {}
        for task in np.unique(demonstrations.task).tolist():
            own = demonstrations.task == task
            self._places[task] = torch.from_numpy(places[own] * self._scale)
            self._actions[task] = torch.from_numpy(demonstrations.actions[own])

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._seen, self.match)))

    def score(self, episodes: Sequence[GroupEpisode]) -> list[Scores] | None:
        actions = torch.cat([self._nearest(episode) for episode in episodes])
        seen = {
            name: torch.from_numpy(np.concatenate([episode.observations[name] for episode in episodes]))
            for name in self._seen
        }
        parts = [
            self._likelihoods({name: tensor[rows] for name, tensor in seen.items()}, actions[rows])
            for rows in (slice(at, at + ROWS_AT_A_TIME) for at in range(0, len(actions), ROWS_AT_A_TIME))
        ]
        ends = np.cumsum([len(episode) + 1 for episode in episodes])[:-1]
        return np.split(np.concatenate(parts), ends)

    def _nearest(self, episode: GroupEpisode) -> Tensor:
        """The expert's chunks (T + 1, K, A) at the demonstrated states nearest to an episode's."""
        places = torch.from_numpy(episode.observations[self.match].astype(np.float32) * self._scale)
        return self._actions[episode.task][torch.cdist(places, self._places[episode.task]).argmin(1)]

    @torch.no_grad()
    def _likelihoods(self, seen: Mapping[str, Tensor], actions: Tensor) -> Scores:
        """Length-normalised likelihood (n,) of chunks of actions (n, K, A)."""
        tokens = self._frozen.encode(actions.to(self.device))
        observations = {name: tensor.to(self.device) for name, tensor in seen.items()}
        temperature = torch.ones(len(tokens), device=self.device)
        log_probs = self._frozen.evaluate(observations, tokens, temperature).log_probs
        likelihoods: Scores = log_probs.flatten(1).double().mean(1).exp().cpu().numpy()
        return likelihoods

    def refresh(self, sum_over_ranks: SumOverRanks) -> None:
        assert isinstance(self.policy, nn.Module)
        copy_trainable(self.policy, self._frozen)
        self.version += 1

    def state_dict(self) -> dict[str, Any]:
        tensors = dict(self._frozen.named_parameters())
        return {"version": self.version, "policy": {name: tensors[name] for name in self._trainable}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.version = int(state["version"])
        tensors = dict(self._frozen.named_parameters())
        for name, tensor in state["policy"].items():
            tensors[name].copy_(tensor)
