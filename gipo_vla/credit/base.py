"""The contract of credit assignment: where advantages and value targets come from.

There are two moments at which a credit can look at experience:

- ``on_group``: when a group, all episodes of one task from one initial state on one rank, is complete. Its
  advantages are written into the replay and stay as they are (group-relative credits).
- ``on_batch``: when segments are drawn for an update, with the values and log-ratios of the network as it
  is now (GAE). Credits of the first kind pass their stored advantages through here.

Between iterations all ranks call ``end_iteration`` together: the one place where a credit may learn.

Rewards arrive already multiplied by the environment's ``reward_scale``: scaling is the caller's, once, so
that values, returns and advantages all are in units of scaled return.

Shape suffixes: N segments, L transitions of a segment, K steps of a chunk, T transitions of an episode.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gipo_envs import EnvironmentSpec
from gipo_vla.credit.normalization import NORMALIZED_LIMIT, NormalizationMode
from gipo_vla.policies.base import Policy
from gipo_vla.settings.registry import credits


@dataclass(frozen=True)
class GroupEpisode:
    """One complete episode of a group, read-only."""

    group: Hashable
    """Task and initial state; the same for all episodes of a group."""
    rewards: NDArray[np.float32]
    """(T, K), scaled; entries from ``executed`` on are ignored."""
    executed: NDArray[np.integer[Any]]
    """(T,), 1..K."""
    success: NDArray[np.bool_]
    """(T, K), per step."""
    terminated: bool
    """The task really ended; false at a step limit."""
    observations: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Arrays (T + 1, ...) by name, before each transition and after the last: the credit's ``inputs``."""
    task: int = 0
    """Index into the environment's tasks."""

    def __len__(self) -> int:
        """Transitions, T."""
        return len(self.executed)

    @cached_property
    def executed_mask(self) -> NDArray[np.bool_]:
        """(T, K), true at steps that were executed."""
        mask: NDArray[np.bool_] = np.arange(self.success.shape[1]) < self.executed[:, None]
        return mask

    @cached_property
    def first_success(self) -> int | None:
        """The transition in which the episode first succeeds."""
        succeeded = (self.success & self.executed_mask).any(axis=1)
        return int(succeeded.argmax()) if succeeded.any() else None


@dataclass(frozen=True)
class CreditBatch:
    """Segments drawn for an update. Padding stands at the end of a segment only."""

    rewards: Tensor
    """float32 (N, L, K), scaled; entries from ``executed`` on are ignored."""
    executed: Tensor
    """int (N, L), 1..K."""
    mask: Tensor
    """bool (N, L), true at valid transitions."""
    terminated: Tensor
    """bool (N,), true only where the last valid transition ended the task; false where the segment was cut
    within its episode or ended at a step limit."""
    values: Tensor | None = None
    """float32 (N, L), before each transition; detached. Needed where ``needs_values``."""
    bootstrap_values: Tensor | None = None
    """float32 (N,), of the observation after the last valid transition; detached; ignored where
    terminated. Needed where ``needs_values``."""
    log_ratios: Tensor | None = None
    """float32 (N, L), log pi - log mu of the whole chunk (summed over its valid tokens); detached. Needed
    where an importance correction is set."""
    advantages: Tensor | None = None
    """float32 (N, L), as ``on_group`` stored them. Needed where ``needs_groups``."""
    truncated: Tensor | None = None
    """bool (N,), true where the last valid transition met a step limit. Needed where such a limit is to count
    as an end."""


@dataclass(frozen=True)
class CreditOutput:
    """Zero where masked, without gradient."""

    advantages: Tensor
    """float32 (N, L), not normalised over the batch."""
    value_targets: Tensor | None
    """float32 (N, L); None where the credit trains no value head (``needs_values`` is false)."""


FEATURES = "features"
"""What ``CreditAssigner.inputs`` calls the policy's own description of what it sees."""

SumOverRanks = Callable[[Tensor], Tensor]
"""Returns the sum of a tensor (CPU) over all ranks; a collective call."""


@dataclass(frozen=True)
class ExpertChunks:
    """Demonstrated decisions: what was seen and what the expert did next. N decisions of all tasks."""

    observations: Mapping[str, NDArray[Any]]
    """Arrays (N, ...) by name."""
    actions: NDArray[np.float32]
    """(N, K, A) in [-1, 1]."""
    task: NDArray[np.int64]
    """(N,) index into the environment's tasks."""


@dataclass(frozen=True)
class CreditContext:
    """What a credit may know of the run that it serves."""

    spec: EnvironmentSpec
    """The environment, with the observations that are stored."""
    policy: Policy
    """The policy that is trained; a credit reads its weights and never changes them."""
    device: torch.device
    """The device of the policy."""
    seed: int
    read_demonstrations: Callable[[Path, str], ExpertChunks] | None = None
    """Reads the demonstrated decisions in a folder, with the observation of that name."""


class CreditAssigner(Protocol):
    """What a credit does. The methods with a body are for the credits that need more; the others inherit
    them."""

    @property
    def needs_groups(self) -> bool:
        """``on_group`` must be called, and what it returns stored and given to ``on_batch``."""
        ...

    @property
    def needs_values(self) -> bool:
        """``on_batch`` needs values and bootstrap values, and gives value targets."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the ``GroupEpisode.observations`` that ``on_group`` reads: those of the environment, and
        ``FEATURES``."""
        return ()

    @property
    def older_transitions(self) -> int:
        """Most transitions of older segments of the same task that ``on_group`` wants to see."""
        return 0

    def prepare(self, context: CreditContext) -> None:
        """Called once, before anything else.

        Raises:
            UserError: the credit cannot do its work in this run.
        """
        return

    def on_group(
        self, episodes: Sequence[GroupEpisode], older: Sequence[GroupEpisode] = ()
    ) -> list[NDArray[np.float32]]:
        """Advantages (T,) for each episode of one complete group.

        Args:
            older: pieces of earlier episodes of the same task, for ``older_transitions``.
        """
        raise TypeError(f"{type(self).__name__} gives its advantages on_batch")

    def outcome(self, episode: GroupEpisode) -> float:
        """The measure that an episode of a group is judged by: a group in which all are equal has no
        contrast. The sum of its scaled rewards, unless a credit has another one."""
        return float(episode.rewards.sum(where=episode.executed_mask, dtype=np.float64))

    def on_batch(self, batch: CreditBatch) -> CreditOutput:
        """Advantages and value targets of drawn segments; by default those of ``on_group`` and no targets."""
        return CreditOutput(stored_advantages(batch), None)

    def end_iteration(self, sum_over_ranks: SumOverRanks) -> None:
        """Called on all ranks together at the end of each iteration, after its metrics. Ranks must make the
        same calls of ``sum_over_ranks``, whatever each of them has seen."""
        return

    def take_sums(self) -> dict[str, float]:
        """What the metrics are made of, on this rank, since the last call: numbers that add up over ranks."""
        return {}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float | None]:
        """Metrics of the sums of all ranks; None for what there was nothing of. The names never change."""
        return {}

    def notice(self) -> str | None:
        """A line that the user should read, once."""
        return None

    def snapshot(self) -> dict[str, Any] | None:
        """A small JSON value that shows what the credit saw last, for a report."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint must keep; empty for stateless credits."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        return


def stored_advantages(batch: CreditBatch) -> Tensor:
    """float32 (N, L): what ``on_group`` gave for the transitions of a batch, 0 at padding."""
    if batch.advantages is None:
        raise ValueError("this credit needs the advantages that on_group gave")
    return torch.where(batch.mask, batch.advantages.float(), 0.0)


class CreditSettings(Protocol):
    """Settings of a credit: a frozen dataclass, known by the default of its field ``name``.

    What stands here with a body is what most credits declare; a class that inherits it overrides what
    differs.
    """

    needs_groups: ClassVar[bool] = False
    """Compares episodes of one initial state, so ``rollout.group_size`` must be 2 or more."""
    sets: ClassVar[Mapping[str, Any]] = {}
    """Settings outside the section that choosing this credit gives another default, by dotted key."""
    fixed: ClassVar[tuple[str, ...]] = ("name",)
    """Settings of this class that a resumed run may not change."""

    @property
    def name(self) -> str: ...

    def build(self) -> CreditAssigner:
        """The credit of these settings."""
        ...

    @property
    def normalize(self) -> NormalizationMode:
        """How advantages are normalised over batches: a setting of most credits."""
        return "running"

    @property
    def shifts_advantages(self) -> bool:
        """``normalize`` subtracts the mean of the advantages too. Not where they are of groups: their zero
        means no better and no worse than the siblings."""
        return not self.needs_groups

    @property
    def normalized_limit(self) -> float:
        """With ``normalize=running`` normalised advantages are clamped to plus or minus this."""
        return NORMALIZED_LIMIT

    @property
    def needs_landmarks(self) -> bool:
        """The environment has to observe landmarks for this credit."""
        return False

    @property
    def uses_stored_values(self) -> bool:
        """Values are those of the network that acted, kept with each transition."""
        return False

    def per_action(self, action_repeat: int) -> Self:
        """The same settings with discounts of an action instead of an env step.

        The rewards of the env steps for which one action is held arrive added up.
        """
        return self


register = credits.register
"""Decorator of the settings class of a credit."""
