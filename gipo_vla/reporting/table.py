"""A table, and its three faces: CSV for programs, HTML for the page, rich for the console."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import rich.box
import rich.table
from rich.console import Console
from rich.markup import escape

from gipo_vla.telemetry.console import console
from gipo_vla.telemetry.metrics import replace_file

PIPE_WIDTH = 140

Cell = str | int | float | None
Record = Mapping[str, Cell]


@dataclass(frozen=True)
class Table:
    """Named columns and rows of text and numbers; None where there is nothing."""

    name: str
    """Stem of the CSV file."""
    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]

    @classmethod
    def of(cls, name: str, title: str, records: Iterable[Record]) -> Table:
        """A table of records, whose keys are the columns in the order in which they first appear."""
        listed = list(records)
        columns = tuple(dict.fromkeys(key for record in listed for key in record))
        return cls(name, title, columns, [[record.get(key) for key in columns] for record in listed])


def write_csv(table: Table, folder: Path) -> Path:
    """``folder/name.csv``; six significant digits, nothing in empty cells, the same bytes everywhere."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([f"{c:.6g}" if isinstance(c, float) else c for c in row] for row in table.rows)
    path = folder / f"{table.name}.csv"
    replace_file(path, text.getvalue())
    return path


def _readable(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        cell = float(f"{cell:.9g}")  # a mean in the middle of two numbers is always rounded to the same one
        if cell != 0 and abs(cell) < 1e-3:
            return f"{cell:.2g}"
        return f"{cell:,.{0 if abs(cell) >= 100 else 1 if abs(cell) >= 10 else 3}f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def to_html(table: Table) -> str:
    """A ``<table>`` with three significant digits, numbers to the right."""
    head = "".join(f"<th>{html.escape(column.replace('_', ' '))}</th>" for column in table.columns)
    body = ""
    for row in table.rows:
        cells = [(" class=number" * (not isinstance(cell, str)), _readable(cell)) for cell in row]
        body += "<tr>" + "".join(f"<td{kind}>{html.escape(text)}</td>" for kind, text in cells) + "</tr>\n"
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def show(table: Table) -> None:
    """Print it for people; into a file or a pipe, which have no width, as wide as it needs."""
    view = rich.table.Table(title=escape(table.title), title_justify="left", box=rich.box.SIMPLE_HEAD)
    for index, column in enumerate(table.columns):
        text = any(isinstance(row[index], str) for row in table.rows)
        view.add_column(escape(column.replace("_", " ")), justify="left" if text else "right", no_wrap=True)
    for row in table.rows:
        view.add_row(*(escape(_readable(cell)) for cell in row))
    place = console if console.is_terminal else Console(stderr=True, highlight=False, width=PIPE_WIDTH)
    place.print(view)
