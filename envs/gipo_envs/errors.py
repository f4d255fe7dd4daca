"""The exceptions that commands tell in one line: a mistake of the user's, and an end by other causes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """A setting, file or machine that the user has to change.

    Commands print the message as one line on stderr, without a traceback, and exit with status 2. The
    message names the value, what was expected and what to do.
    """


class RunStoppedError(RuntimeError):
    """A run that had to end through no mistake in its settings; one line, exit status 1."""


class LostRankError(RunStoppedError):
    """Another rank died or does not answer; every rank that notices tells of it."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A ready-made ending for "unknown X" messages: the nearest known names, or all when few.

    Example: ``nearest("reech-v3", tasks)`` -> ``"nearest: reach-v3, peg-insert-side-v3"``.
    """
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if matches:
        return "nearest: " + ", ".join(matches)
    if len(known) <= 12:
        return "available: " + ", ".join(known)
    return f"{len(known)} are available, for instance " + ", ".join(known[:count])


def first_three(values: Sequence[str], separator: str = ", ") -> str:
    """The first three of what a message cannot list in full, and dots behind them if there are more."""
    return separator.join([*values[:3], *["..."] * (len(values) > 3)])
