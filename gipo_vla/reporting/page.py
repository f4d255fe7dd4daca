"""The report as one HTML file: no scripts, no external resources, figures inside as base64."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gipo_vla import foreign
from gipo_vla.reporting.table import Table, to_html

LARGEST_IMAGE = 2**26
"""Bytes of a figure, or of the contact sheet that a run made."""

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; color: #1b1b1b;
  background: #fff; max-width: 68rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .4rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
p { max-width: 52rem; margin: .5rem 0; }
.facts { color: #555; }
.remarks { background: #fff7e0; border-left: 4px solid #e0a800; padding: .4rem .9rem; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .9rem; max-width: 52rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; margin: .6rem 0; }
th, td { padding: .22rem .7rem; border-bottom: 1px solid #e4e4e4; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #999; font-weight: 600; vertical-align: bottom; }
td:first-child { min-width: 9rem; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: #333; }
pre { font-size: .82rem; background: #f6f6f6; padding: .7rem; overflow-x: auto; }
@media print { body { margin: 0; max-width: none; font-size: 11px; } h2, figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } .scroll { overflow: visible; } }
"""


@dataclass(frozen=True)
class Image:
    """A drawn figure on disk."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it."""

    title: str
    text: str = ""
    images: Sequence[Image] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Table] = ()
    """Long tables that open on a click (and need no script for it)."""
    verbatim: str = ""
    links: Sequence[str] = ()
    """Files beside the page that it cannot hold: videos."""

    @property
    def holds_something(self) -> bool:
        return bool(self.images or self.links or self.tables or self.folded or self.verbatim)


def render(title: str, facts: str, remarks: Sequence[str], sections: Sequence[Section]) -> str:
    """The whole file.

    Args:
        facts: one line under the title.
        remarks: what a reader must know first.
        sections: those that hold nothing are left out.
    """
    title = html.escape(title)
    noted = "".join(f"<li>{html.escape(remark)}</li>" for remark in remarks)
    if noted:
        noted = f'<div class="remarks"><ul>{noted}</ul></div>\n'
    body = "\n".join(_section(section) for section in sections if section.holds_something)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{title}</h1>\n<p class="facts">{html.escape(facts)}</p>\n'
        f"{noted}{body}\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<section>\n<h2>{html.escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{html.escape(section.text)}</p>")
    parts += [f'<p><a href="{html.escape(link)}">{html.escape(link)}</a></p>' for link in section.links]
    for image in section.images:
        data = base64.b64encode(foreign.read_bytes(image.path, LARGEST_IMAGE)).decode("ascii")
        name, caption = html.escape(image.path.stem.replace("_", " ")), html.escape(image.caption)
        picture = f'<img alt="{name}" src="data:image/png;base64,{data}">'
        parts.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    parts += [f'<div class="scroll">{to_html(table)}</div>' for table in section.tables]
    parts += [
        f"<details><summary>{html.escape(table.title)} ({len(table.rows)} rows, {table.name}.csv)</summary>"
        f'<div class="scroll">{to_html(table)}</div></details>'
        for table in section.folded
    ]
    if section.verbatim:
        parts.append(f"<details><summary>Show</summary><pre>{html.escape(section.verbatim)}</pre></details>")
    return "\n".join([*parts, "</section>"])
