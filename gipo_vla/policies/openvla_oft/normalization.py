"""Statistics of the training data, and what they do to actions and proprioception.

``dataset_statistics.json`` (or ``norm_stats`` in ``config.json``) holds, for every data set that a checkpoint
was trained on, the 1st and 99th percentile of each action and proprio dimension. A policy that acts with
another data set's entry moves the arm by plausible, wrong amounts and succeeds never, so a key that does not
exist is refused by name and the bounds in use are logged.

The formulas are OpenVLA-OFT's (``normalize_proprio`` and ``_unnormalize_actions``, BOUNDS_Q99).

Shape suffixes: D action dimensions, R proprioception.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gipo_envs.errors import UserError
from gipo_vla.policies.openvla_oft.action_tokens import EDGES, centres_of_tokens, tokens_of
from gipo_vla.policies.precision import KeepsDtype

EPSILON = 1e-8
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bounds:
    """1st and 99th percentile of each dimension, and which dimensions they apply to."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    mask: tuple[bool, ...]
    """False: the dimension is left as it is."""


@dataclass(frozen=True)
class Statistics:
    """What a policy needs of one data set's statistics."""

    key: str
    action: Bounds
    proprio: Bounds | None

    def __str__(self) -> str:
        bounds = ", ".join(
            f"{low:.3g}..{high:.3g}" if used else "as it is"
            for low, high, used in zip(self.action.low, self.action.high, self.action.mask)
        )
        return f"{self.key}: actions {bounds}"


def select_statistics(entries: Mapping[str, Any], key: str | None, source: str) -> Statistics | None:
    """The entry of a published statistics file for ``policy.unnorm_key``; None if the file has no entry.

    Raises:
        UserError: the key does not exist, or none is given and there are several.
    """
    if not entries:
        if key is not None:
            raise UserError(
                f"policy.unnorm_key is {key!r}, but {source} holds no statistics: set it to null to act on "
                "[-1, 1], or use a checkpoint with dataset_statistics.json"
            )
        return None
    known = ", ".join(sorted(entries))
    if key is None:
        if len(entries) > 1:
            raise UserError(
                f"{source} holds statistics of {len(entries)} data sets: set policy.unnorm_key to one of "
                f"{known}"
            )
        key = next(iter(entries))
    elif key not in entries:
        if f"{key}_no_noops" not in entries:
            raise UserError(
                f"policy.unnorm_key is {key!r}, which {source} does not have: set it to one of {known}"
            )
        key = f"{key}_no_noops"
    entry = entries[key]
    statistics = Statistics(
        key,
        _bounds(entry.get("action"), f"{source}: {key}.action"),
        _bounds(entry["proprio"], f"{source}: {key}.proprio") if entry.get("proprio") else None,
    )
    logger.info("un-normalising with %s from %s", statistics, source)
    return statistics


def _bounds(entry: Mapping[str, Any] | None, where: str) -> Bounds:
    if entry is None or "q01" not in entry or "q99" not in entry:
        raise UserError(
            f"{where} has no q01 and q99: OpenVLA-OFT's statistics hold both; take the original file"
        )
    low, high = entry["q01"], entry["q99"]
    mask = entry.get("mask") or [True] * len(low)
    if not len(low) == len(high) == len(mask):
        raise UserError(
            f"{where} has {len(low)} values in q01, {len(high)} in q99 and {len(mask)} in mask: "
            "they must be as many"
        )
    return Bounds(tuple(map(float, low)), tuple(map(float, high)), tuple(map(bool, mask)))


class ActionScaling(KeepsDtype):
    """Tokens to the environment's actions and back; the identity on [-1, 1] without statistics."""

    centres: Tensor
    edges: Tensor
    low: Tensor
    span: Tensor
    mask: Tensor

    def __init__(
        self, action_dims: int, bounds: Bounds | None, gripper: Literal["auto", "libero", "none"]
    ) -> None:
        super().__init__()
        if bounds is not None and len(bounds.low) != action_dims:
            raise UserError(
                f"the checkpoint's statistics have {len(bounds.low)} action dimensions, the environment has "
                f"{action_dims}: choose the environment that the checkpoint was trained for"
            )
        kept = Bounds((-1.0,) * action_dims, (1.0,) * action_dims, (False,) * action_dims)
        used = bounds or kept
        self.flips_gripper = gripper == "libero" or (
            gripper == "auto" and bounds is not None and not bounds.mask[-1]
        )
        low = torch.tensor(used.low, dtype=torch.float64)
        high = torch.tensor(used.high, dtype=torch.float64)
        centres = torch.as_tensor(centres_of_tokens()).float()
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("edges", torch.as_tensor(EDGES), persistent=False)
        self.register_buffer("low", low.float(), persistent=False)
        self.register_buffer("span", (high - low + EPSILON).float(), persistent=False)
        self.register_buffer("mask", torch.tensor(used.mask), persistent=False)

    def normalized(self, tokens: Tensor) -> Tensor:
        """Bin centres float32 (...) of tokens (...)."""
        return self.centres[tokens]

    def nearest_tokens(self, normalized: Tensor) -> Tensor:
        """Tokens int64 (...) nearest to normalised actions (...)."""
        return tokens_of(normalized, self.edges)

    def unnormalize(self, normalized: Tensor) -> Tensor:
        """The data set's units (..., D) of normalised actions (..., D)."""
        scaled = 0.5 * (normalized + 1.0) * self.span + self.low
        return torch.where(self.mask, scaled, normalized)

    def to_environment(self, normalized: Tensor) -> Tensor:
        """The environment's actions (..., D) in [-1, 1] of normalised actions (..., D)."""
        actions = self.unnormalize(normalized)
        if self.flips_gripper:
            gripper = -torch.sign(2.0 * actions[..., -1:] - 1.0)
            actions = torch.cat([actions[..., :-1], gripper], dim=-1)
        return actions.clamp(-1.0, 1.0)

    def encode(self, actions: Tensor) -> Tensor:
        """Tokens int64 (..., D) nearest to the environment's actions (..., D); the inverse of decoding."""
        if self.flips_gripper:
            actions = torch.cat([actions[..., :-1], 0.5 * (1.0 - actions[..., -1:])], dim=-1)
        scaled = 2.0 * (actions - self.low) / self.span - 1.0
        return tokens_of(torch.where(self.mask, scaled, actions), self.edges)


class ProprioScaling(KeepsDtype):
    """Raw proprioception (..., R) to what the network reads; the identity without statistics."""

    low: Tensor
    span: Tensor
    mask: Tensor

    def __init__(self, proprio_size: int, bounds: Bounds | None) -> None:
        super().__init__()
        if bounds is not None and len(bounds.low) != proprio_size:
            raise UserError(
                f"the checkpoint's statistics have {len(bounds.low)} proprio dimensions, the environment "
                f"gives {proprio_size}: choose the environment that the checkpoint was trained for"
            )
        self.has_bounds = bounds is not None
        used = bounds or Bounds((0.0,) * proprio_size, (1.0,) * proprio_size, (False,) * proprio_size)
        low = torch.tensor(used.low, dtype=torch.float64)
        high = torch.tensor(used.high, dtype=torch.float64)
        self.register_buffer("low", low.float(), persistent=False)
        self.register_buffer("span", (high - low + EPSILON).float(), persistent=False)
        self.register_buffer("mask", torch.tensor(used.mask), persistent=False)

    def forward(self, proprio: Tensor) -> Tensor:
        if not self.has_bounds:
            return proprio.float()
        scaled = 2.0 * (proprio.float() - self.low) / self.span - 1.0
        return torch.where(self.mask, scaled, proprio.float()).clamp(-1.0, 1.0)
