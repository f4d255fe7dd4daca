"""Instruction recovery: how well can the instruction be guessed from the frames?

    p = exp(mean over the instruction's tokens of log P(token | frames, tokens before))

by the vision-language model that the policy was made from, with the weights it had before reinforcement (in
LoRA training the frozen ones; where every weight is trained, a copy that was taken when the run began). It
never changes, so there is one version. Source: IGPO, arXiv 2510.14967, whose ground-truth answer it is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from gipo_envs.errors import UserError
from gipo_vla.credit.base import CreditContext, GroupEpisode
from gipo_vla.credit.information_gain.scorers import Scorer, ScorerSettings, Scores, register
from gipo_vla.policies.base import ReadsInstructions

ROWS_AT_A_TIME = 16


@register
@dataclass(frozen=True)
class InstructionScorerSettings(ScorerSettings):
    """A vision-language model's confidence in the task's instruction, given the frames."""

    name: Literal["instruction"] = "instruction"

    def build(self, context: CreditContext) -> Scorer:
        return InstructionScorer(context)


class InstructionScorer(Scorer):
    """See the module."""

    def __init__(self, context: CreditContext) -> None:
        self.version = 0
        self.device = context.device
        policy = context.policy
        if not isinstance(policy, ReadsInstructions):
            raise UserError(
                "credit.scorer is instruction, but this policy reads none: set policy=openvla_oft_7b, or "
                "credit.scorer=success_belief"
            )
        assert isinstance(policy, nn.Module)
        policy.require_instructions()
        self._trainable = [] if policy.has_frozen_base else [name for name, _ in policy.named_parameters()]
        self._policy: Any = policy
        """A policy, and a module."""
        if not policy.has_frozen_base:
            self._policy = copy.deepcopy(policy).requires_grad_(False)

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("images", "task")

    @torch.no_grad()
    def score(self, episodes: Sequence[GroupEpisode]) -> list[Scores] | None:
        return [self._score(episode) for episode in episodes]

    def _score(self, episode: GroupEpisode) -> Scores:
        parts = []
        for start in range(0, len(episode) + 1, ROWS_AT_A_TIME):
            rows = {
                name: torch.from_numpy(episode.observations[name][start : start + ROWS_AT_A_TIME]).to(
                    self.device
                )
                for name in self.inputs
            }
            parts.append(self._policy.instruction_log_probs(rows).double().exp().cpu().numpy())
        return np.concatenate(parts)

    def state_dict(self) -> dict[str, Any]:
        tensors = dict(self._policy.named_parameters())
        return {"version": self.version, "policy": {name: tensors[name] for name in self._trainable}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        tensors = dict(self._policy.named_parameters())
        for name, tensor in state["policy"].items():
            tensors[name].copy_(tensor)
