"""Demonstrations beside an objective: what a run keeps of its expert where successes are rare."""

from __future__ import annotations

from gipo_vla.imitation.demonstrations import Demonstrations
from gipo_vla.imitation.examples import BatchOrder, Examples
from gipo_vla.learner.demonstrated import Demonstrated


class DemonstrationMix:
    """Demonstrated decisions for every update.

    Which ones is a pure function of (seed, number of the update), so that a run that stops and goes on sees
    the same.

    Args:
        chunk: actions of a decision.
        count: decisions of an update, over all ranks.
    """

    def __init__(self, demonstrations: Demonstrations, chunk: int, count: int, seed: int) -> None:
        self.examples = Examples(demonstrations, chunk)
        every, _ = self.examples.split(0.0, seed)
        self.order = BatchOrder(every, count, seed)

    def at(self, update: int) -> Demonstrated:
        """The demonstrated decisions of update number ``update``, from 0: those of all ranks."""
        return self.examples.batch(self.order.at(update))
