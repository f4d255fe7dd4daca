"""What a person sees: tables at the start, progress, one closing line. All of it on stderr.

stdout is for programs: commands that promise JSON print it there and nothing else.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, Self, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


class _Stderr:
    """``sys.stderr`` as it is at the moment; a log on a full disk, or a pipe whose reader has gone, must not
    end a run."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


console = Console(file=cast(IO[str], _Stderr()), highlight=False)


def settings_table(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print a two-column table of what is active."""
    view = Table(title=escape(title), show_header=False, title_justify="left")
    view.add_column(style="bold")
    view.add_column(overflow="fold")
    for row in rows:
        view.add_row(*map(escape, row))
    console.print(view)


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str] = ("",)
) -> Table:
    """A table for people: the columns named in ``left`` hold words, the others numbers."""
    view = Table(title=title, title_justify="left")
    for name in columns:
        view.add_column(name, justify="left" if name in left else "right", overflow="fold")
    for row in rows:
        view.add_row(*row)
    return view


def figures_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table of figures, whose first column says what they are and has no heading."""
    table = Table(title=title)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def say(line: str) -> None:
    """Print a line, once for all ranks."""
    if int(os.environ.get("RANK", 0)) == 0:
        console.print(line, soft_wrap=True, markup=False)


def number(value: float | int | None, digits: int) -> str:
    """A number for people; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


UNITS = (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48), ("days", 86400, math.inf))
"""Name, length in seconds, and the number of them from which the next is used."""


def in_words(seconds: float | None) -> str:
    """A length of time for people: ``45 s``, ``12 min``, ``4.5 h``, ``9.3 days``."""
    if seconds is None:
        return "unknown"
    count, unit = next((seconds / length, name) for name, length, until in UNITS if seconds / length < until)
    digits = 1 if unit in ("h", "days") and count < 10 else 0
    return f"{count:,.{digits}f} {unit}"


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    done: int
    total: int
    heading: str
    """Both in words, for instance "iteration 3/40"."""


REMEMBERED_SECONDS = 3600.0
"""How far back the time left is estimated from. Rich looks back 30 seconds, within which a long iteration
leaves nothing to estimate from."""


class RunProgress:
    """A progress bar on a terminal, else a line every so many iterations; both say how long the rest of the
    training takes at the pace of this session.

    Args:
        position: of the run as it starts or resumes.
        line_every: iterations between two lines where there is no terminal.
    """

    def __init__(self, position: Position, line_every: int = 10, quiet: bool = False) -> None:
        self.line_every, self.quiet = line_every, quiet
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
            refresh_per_second=4,
            speed_estimate_period=REMEMBERED_SECONDS,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("training", total=position.total, completed=position.done, status="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, iteration: int, position: Position, status: str, last: bool = False) -> None:
        """Show an iteration; the first and the last one always."""
        self._bar.update(self._task, completed=position.done, status=status)
        due = iteration % self.line_every == 0 or iteration == 1 or last
        if due and self._bar.disable and not self.quiet:
            left = self._bar.tasks[self._task].time_remaining
            rest = f"  about {in_words(left)} left" if left else ""
            console.print(f"{position.heading}  {status}{rest}", soft_wrap=True)
