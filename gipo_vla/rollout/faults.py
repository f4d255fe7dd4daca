"""How many replaced simulator workers are too many."""

from __future__ import annotations

from collections import deque


class FaultWindow:
    """Counts the faults of the last iterations.

    Args:
        limit: faults that are tolerated.
        iterations: length of the window.
        total: faults so far.
    """

    def __init__(self, limit: int, iterations: int, total: int = 0) -> None:
        self.limit, self.iterations = limit, iterations
        self._totals = deque([total], maxlen=iterations)
        """Totals at the beginning of each iteration in the window; the last is the one under way."""

    def count(self, total: int) -> int:
        """Faults within the window, given their total now."""
        return total - self._totals[0]

    def exceeded(self, total: int) -> bool:
        return self.count(total) > self.limit

    def end_iteration(self, total: int) -> None:
        self._totals.append(total)
