"""What a person sees: tables at the start, progress, one closing line. All of it on stderr.

stdout is for programs: commands that promise JSON print it there and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, Self, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
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


def settings_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print a two-column table of what is active."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


def _number(value: float | int | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


class TrainingProgress:
    """A progress bar on a terminal, else a line every so many iterations.

    Args:
        iterations: of the whole run.
        done: iterations already done.
        line_every: iterations between two lines where there is no terminal.
    """

    def __init__(self, iterations: int, done: int = 0, line_every: int = 10, quiet: bool = False) -> None:
        self.iterations, self.line_every, self.quiet = iterations, line_every, quiet
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if sys.stderr.isatty() and not quiet:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
                console=console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task("training", total=iterations, completed=done, status="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, metrics: Mapping[str, float | int | None], timings: Mapping[str, float]) -> None:
        """Show an iteration."""
        if self.quiet:
            return
        status = (
            f"success {_number(metrics.get('success_once_recent'), 2)}"
            f"  env steps {int(metrics['env_steps'] or 0):,}"
            f" ({timings['env_steps_per_second']:,.0f}/s)"
            f"  lag {_number(metrics.get('staleness/lag_iterations_mean'), 1)} it"
            f"  P95|log rho| {_number(metrics.get('staleness/p95_abs_log_ratio'), 2)}"
        )
        iteration = int(metrics["iteration"] or 0)
        if self._bar:
            self._bar.update(self._task, completed=iteration, status=status)
        elif iteration % self.line_every == 0 or iteration in (1, self.iterations):
            console.print(f"iteration {iteration}/{self.iterations}  {status}", soft_wrap=True)
