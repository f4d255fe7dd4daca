"""Report on runs: ``python -m gipo_vla.report DIR [DIR ...] [out=PATH]``.

Learning curves with intervals, success per task and over sigma x capacity, and what staleness did, as
PNG, CSV and one HTML page. What to compare is found from the runs' settings: seeds are replicates, tasks are
strata, whatever else varies makes the configurations.

DIR is a run folder, or a folder that contains run folders at any depth (a sweep). Only metrics.jsonl is
needed; config.yaml and evaluation.json are used where they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict

from gipo_envs.errors import UserError
from gipo_vla import cli, options
from gipo_vla.reporting import Report, results, write_report
from gipo_vla.reporting.table import show
from gipo_vla.telemetry.console import console


@dataclass(frozen=True)
class Options:
    """Where to write."""

    __pydantic_config__: ClassVar[ConfigDict] = options.DESCRIBED

    out: Path | None = None
    """Folder to write everything to. Without it, report.html, PNG and CSV files go to DIR/report/ of the
    first DIR, and report.html of a single run directly into its folder."""


def main(arguments: Sequence[str]) -> int:
    """Write the report, print its headline for people and one line of JSON for programs."""
    parsed = options.parse(arguments, Options, __doc__ or "")
    if parsed is None:
        return 0
    own, folders = parsed
    if not folders:
        raise UserError(
            "name at least one run folder or sweep: python -m gipo_vla.report DIR [DIR ...] [out=PATH]"
        )
    report = write_report(
        [Path(folder).expanduser() for folder in folders], own.out.expanduser() if own.out else None
    )
    for remark in report.comparison.remarks:
        console.print(f"note: {remark}", soft_wrap=True)
    show(results.readable(report.comparison))
    console.print(f"report: {report.page}", soft_wrap=True)
    print(json.dumps(summary_json(report)))
    return 0


def summary_json(report: Report) -> dict[str, object]:
    """The line for programs."""
    comparison, headline = report.comparison, report.headline
    return {
        "report": str(report.page),
        "runs": len(comparison.runs),
        "runs_left_out": len(comparison.left_out),
        "tasks": list(comparison.tasks),
        "varied": list(comparison.factors),
        "score": f"success_once ({comparison.source})",
        "configurations": [dict(zip(headline.columns, row)) for row in headline.rows],
    }


if __name__ == "__main__":
    cli.run(main)
