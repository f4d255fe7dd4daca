"""Statistics of the training data, and what they do to actions and proprioception; action tokens.

``dataset_statistics.json`` (or ``norm_stats`` in ``config.json``) holds, for every data set that a checkpoint
was trained on, the 1st and 99th percentile of each action and proprio dimension. A policy that acts with
another data set's entry moves the arm by plausible, wrong amounts and succeeds never, so a key that does not
exist is refused by name and the bounds in use are logged.

The formulas are OpenVLA-OFT's (``normalize_proprio`` and ``_unnormalize_actions``, BOUNDS_Q99). Tokens are
those of OpenVLA's ``ActionTokenizer``: 256 bin *edges* span [-1, 1] and have 255 centres between them; an id
names a bin counted from the top, so ascending ids are descending actions, and the two lowest ids name the
same centre (encoding never writes the lowest one except for +1 exactly). The policy's tokens count from the
lowest action id: token 0 is id 31744 of the published vocabulary and the action +0.996, token 255 is id 31999
and the action -0.996.

Shape suffixes: D action dimensions, R proprioception.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gipo_envs.errors import UserError
from gipo_vla.policies.openvla_oft.settings import ACTION_IDS
from gipo_vla.policies.precision import KeepsDtype

EPSILON = 1e-8
EDGES: NDArray[np.float64] = np.linspace(-1.0, 1.0, ACTION_IDS)
_BETWEEN = (EDGES[:-1] + EDGES[1:]) / 2.0
CENTRES: NDArray[np.float64] = np.concatenate([_BETWEEN[-1:], _BETWEEN[::-1]])
"""(256,) the normalised action of each token, descending."""
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


def tokens_of(actions: Tensor, edges: Tensor) -> Tensor:
    """Tokens int64 (...) of normalised actions (...), clipped to [-1, 1]; ``EDGES`` on their device.

    The original digitises with ``numpy.digitize`` (the count of edges that are <= the action, 1..256) and
    subtracts that from the end of the vocabulary.
    """
    bins = torch.bucketize(actions.double().clamp(-1.0, 1.0), edges, right=True)
    return ACTION_IDS - bins


class Scaling(KeepsDtype):
    """The data set's units to [-1, 1] between the percentiles, and back; what the mask leaves out stays.

    Args:
        size: dimensions that the environment has.
        what: for messages.
    """

    low: Tensor
    span: Tensor
    mask: Tensor

    def __init__(self, size: int, bounds: Bounds | None, what: str) -> None:
        super().__init__()
        if bounds is None:
            bounds = Bounds((-1.0,) * size, (1.0,) * size, (False,) * size)
        if len(bounds.low) != size:
            raise UserError(
                f"the checkpoint's statistics have {len(bounds.low)} {what} dimensions, the environment has "
                f"{size}: choose the environment that the checkpoint was trained for"
            )
        low = torch.tensor(bounds.low, dtype=torch.float64)
        high = torch.tensor(bounds.high, dtype=torch.float64)
        self.register_buffer("low", low.float(), persistent=False)
        self.register_buffer("span", (high - low + EPSILON).float(), persistent=False)
        self.register_buffer("mask", torch.tensor(bounds.mask), persistent=False)

    def normalize(self, values: Tensor) -> Tensor:
        return torch.where(self.mask, 2.0 * (values - self.low) / self.span - 1.0, values)

    def unnormalize(self, normalized: Tensor) -> Tensor:
        return torch.where(self.mask, 0.5 * (normalized + 1.0) * self.span + self.low, normalized)


class ActionScaling(KeepsDtype):
    """Tokens to the environment's actions and back; the identity on [-1, 1] without statistics."""

    centres: Tensor
    edges: Tensor

    def __init__(
        self, action_dims: int, bounds: Bounds | None, gripper: Literal["auto", "libero", "none"]
    ) -> None:
        super().__init__()
        self.scaling = Scaling(action_dims, bounds, "action")
        left_alone = bounds is not None and not bounds.mask[-1]
        self.flips_gripper = gripper == "libero" or (gripper == "auto" and left_alone)
        self.register_buffer("centres", torch.as_tensor(CENTRES).float(), persistent=False)
        self.register_buffer("edges", torch.as_tensor(EDGES), persistent=False)

    def normalized(self, tokens: Tensor) -> Tensor:
        """Bin centres float32 (...) of tokens (...)."""
        return self.centres[tokens]

    def nearest_tokens(self, normalized: Tensor) -> Tensor:
        """Tokens int64 (...) nearest to normalised actions (...)."""
        return tokens_of(normalized, self.edges)

    def to_environment(self, normalized: Tensor) -> Tensor:
        """The environment's actions (..., D) in [-1, 1] of normalised actions (..., D)."""
        actions = self.scaling.unnormalize(normalized)
        if self.flips_gripper:
            gripper = -torch.sign(2.0 * actions[..., -1:] - 1.0)
            actions = torch.cat([actions[..., :-1], gripper], dim=-1)
        return actions.clamp(-1.0, 1.0)

    def encode(self, actions: Tensor) -> Tensor:
        """Tokens int64 (..., D) nearest to the environment's actions (..., D); the inverse of decoding."""
        if self.flips_gripper:
            actions = torch.cat([actions[..., :-1], 0.5 * (1.0 - actions[..., -1:])], dim=-1)
        return self.nearest_tokens(self.scaling.normalize(actions))


class ProprioScaling(Scaling):
    """Raw proprioception (..., R) to what the network reads; the identity without statistics."""

    def __init__(self, proprio_size: int, bounds: Bounds | None) -> None:
        super().__init__(proprio_size, bounds, "proprio")
        self.has_bounds = bounds is not None

    def forward(self, proprio: Tensor) -> Tensor:
        normalized = self.normalize(proprio.float())
        return normalized.clamp(-1.0, 1.0) if self.has_bounds else normalized
