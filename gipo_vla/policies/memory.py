"""What a policy's settings declare of their policy before it is built: its tokens, its memory, its
arithmetic (``gipo_vla.policies.base.PolicySettings``).

Plans, the refusal of what cannot fit, and tables read nothing else of a policy, so that a policy of a user's
is planned like the ones that are built in.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

DtypeName = Literal["float32", "bfloat16"]
BYTES = {"float32": 4, "bfloat16": 2}
MOST_IN_A_BUCKET = 500_000_000
"""Gradients (elements) that are reduced over ranks at once; fewer where fewer train."""
CUDA_OVERHEAD = 1 << 30
"""CUDA context, cuBLAS workspaces and the communication library's buffers, in bytes."""


@dataclass(frozen=True)
class TokenShape:
    """The tokens of one decision: (chunk, action_dims) of ``bins`` ids."""

    chunk: int
    """Actions a decision, K."""
    action_dims: int
    bins: int


@dataclass(frozen=True)
class Work:
    """What a rank does with a policy."""

    micro_batch: int
    """Samples (decisions) in one forward and backward."""
    act_batch: int = 0
    """Samples in one forward without gradient."""
    dtype: DtypeName = "float32"
    """What ``learner.precision`` stands for; policies may compute in another one."""
    ranks: int = 1
    zero_stage: Literal[0, 1, 2] = 2
    cuda: bool = False
    twins: int = 1
    """Copies of what trains beside the learner's own: the behaviour policy's, a frozen reference's."""


@dataclass(frozen=True)
class PolicyMemory:
    """Bytes on one rank's device."""

    frozen: int
    """Weights shared by learner and behaviour policy."""
    trainable: int
    twin: int
    """The behaviour policy's own copy of what trains (and a reference's)."""
    gradients: int
    """The bucket that they are reduced in, and this rank's part of them."""
    optimizer: int
    """Adam's moments, and the float32 copy of the weights that ZeRO steps (also of float32 weights)."""
    activations: int
    """Kept for the backward pass of one micro-batch."""
    workspace: int
    """Largest transient: one block's gradients (and recomputed activations), or acting."""
    overhead: int
    """Libraries of the policy and of the device."""
    stepping: int = 0
    """Largest transient of an optimizer step, which begins when the activations are gone."""

    @property
    def held(self) -> int:
        """What is there all the time."""
        transient = ("activations", "workspace", "stepping")
        return sum(getattr(self, item.name) for item in fields(self) if item.name not in transient)

    @property
    def total(self) -> int:
        """The greatest at any time."""
        return self.held + max(self.activations + self.workspace, self.stepping)


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations of one sample."""

    act: float
    """A forward without gradient."""
    train: float
    """A forward and the backward of it."""


def of_trained(parameters: int, size: int, work: Work) -> dict[str, int]:
    """The items of ``PolicyMemory`` that follow from what trains under DeepSpeed's ZeRO.

    Args:
        parameters: that train.
        size: their bytes together.
    """
    stage, ranks = work.zero_stage, work.ranks
    masters = 4 * parameters if stage >= 1 else 0
    bucket = min(size, MOST_IN_A_BUCKET * 4) if stage >= 1 else 0
    return {
        "trainable": size,
        "twin": size * work.twins,
        "gradients": bucket + size // (ranks if stage == 2 else 1),
        "optimizer": (masters + 8 * parameters) // (ranks if stage >= 1 else 1),
        # ZeRO flattens the gradient, and torch's Adam makes the denominator of a step in two tensors; without
        # ZeRO it steps one parameter after the other.
        "stepping": 3 * 4 * parameters // ranks if stage >= 1 else 0,
    }
