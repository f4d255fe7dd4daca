"""Scorers: how sure is something else than the critic that the episode will do what it should?

A scorer looks at each state of a group's episodes and gives a number between 0 and 1. Information gain is by
how much a step raised it. While it scores it is frozen: the only moment at which it may change is
``refresh``, between iterations, on all ranks alike, and each change is a new version.

A scorer is built by its settings class, which is registered::

    @register
    @dataclass(frozen=True)
    class MyScorerSettings(ScorerSettings):
        name: Literal["my_scorer"] = "my_scorer"

        def build(self, context: CreditContext) -> Scorer: ...

The scorers here are ``success_belief``, ``instruction`` and ``demonstration``, each in a module of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from gipo_vla.credit.base import CreditContext, GroupEpisode, SumOverRanks
from gipo_vla.settings.registry import scorers

Scores = NDArray[np.float64]


class Scorer(Protocol):
    """What a scorer does. Those that never learn inherit the methods with a body."""

    version: int
    """Counts its changes; stored with its state and reported with every metric."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """See ``CreditAssigner.inputs``."""
        ...

    def score(self, episodes: Sequence[GroupEpisode]) -> list[Scores] | None:
        """Scores (T + 1,) in 0..1 of the states of each episode, without gradient; None while it knows
        nothing yet."""
        ...

    def observe(self, episodes: Sequence[GroupEpisode], scores: Sequence[Scores] | None) -> None:
        """Remember how scored episodes ended. Comes after their scores: what a scorer is trained on it has
        never scored."""
        return

    def refresh(self, sum_over_ranks: SumOverRanks) -> None:
        """The window is over: become the next version. Called on all ranks together."""
        return

    def take_sums(self) -> dict[str, float]:
        """See ``CreditAssigner.take_sums``."""
        return {}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float | None]:
        """See ``CreditAssigner.metrics``."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a checkpoint must keep."""
        return {"version": self.version}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.version = int(state["version"])


class ScorerSettings(Protocol):
    """Settings of a scorer: a frozen dataclass, known by the default of its field ``name``."""

    movable: ClassVar[tuple[str, ...]] = ()
    """Settings that a resumed run may change; the others would make it another run."""

    @property
    def name(self) -> str: ...

    @property
    def needs_landmarks(self) -> bool:
        """The environment has to observe landmarks for this scorer."""
        return False

    def build(self, context: CreditContext) -> Scorer:
        """The scorer of these settings.

        Raises:
            UserError: it cannot do its work in this run.
        """
        ...


register = scorers.register
"""Decorator of the settings class of a scorer."""
