"""Report on runs: ``python -m gipo_vla.report DIR [DIR ...] [out=PATH] [score=SCORE]``.

Learning curves with intervals, success per task and over sigma x capacity, and what staleness did, as
PNG, CSV and one HTML page. What to compare is found from the runs' settings: seeds are replicates, tasks are
strata, whatever else varies makes the configurations.

DIR is a run folder, or a folder that contains run folders at any depth (a sweep). Only metrics.jsonl is
needed; config.yaml and evaluation.json are used where they are.

    python -m gipo_vla.report pack DIR [SWEEP_DIR/sweep.json]

moves the run folders in DIR into compressed archives, DIR/runs-NN.jsonl.xz, fit for committing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gipo_envs.errors import UserError
from gipo_vla import cli, options
from gipo_vla.reporting import Report, archive, results, write_report
from gipo_vla.reporting.summary import HeldOutScore
from gipo_vla.reporting.table import show
from gipo_vla.telemetry.console import console


@dataclass(frozen=True)
class Options:
    """Where to write, and what to compare by."""

    out: Path | None = None
    """Folder to write everything to. Without it, report.html, PNG and CSV files go to DIR/report/ of the
    first DIR, and report.html of a single run directly into its folder."""
    score: HeldOutScore | None = None
    """By which runs are compared: on held-out initial states, in the mode that the evaluation has in its
    headline, or the same with actions sampled. Default: what the sweep in DIR was started with, else
    success_once."""


def main(arguments: Sequence[str]) -> int:
    """Write the report, print its headline for people and one line of JSON for programs."""
    parsed = options.parse(arguments, Options, __doc__ or "")
    if parsed is None:
        return 0
    own, folders = parsed
    if folders and folders[0] == "pack":
        return _pack([Path(folder).expanduser() for folder in folders[1:]])
    if not folders:
        raise UserError(
            "name at least one run folder or sweep: python -m gipo_vla.report DIR [DIR ...] [out=PATH]"
        )
    report = write_report(
        [Path(folder).expanduser() for folder in folders],
        own.out.expanduser() if own.out else None,
        own.score,
    )
    for remark in report.comparison.remarks:
        console.print(f"note: {remark}", soft_wrap=True, markup=False)
    show(results.readable(report.comparison))
    console.print(f"report: {report.page}", soft_wrap=True, markup=False)
    print(json.dumps(summary_json(report)))
    return 0


def _pack(paths: Sequence[Path]) -> int:
    if not 1 <= len(paths) <= 2 or not paths[0].is_dir():
        raise UserError(
            "name a folder of run folders: python -m gipo_vla.report pack DIR [SWEEP_DIR/sweep.json]"
        )
    packed = archive.pack(*paths)
    console.print(f"{packed} runs packed into {paths[0]}", soft_wrap=True)
    print(json.dumps({"packed": packed, "folder": str(paths[0])}))
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
        "score": f"{comparison.score} ({comparison.source})",
        "configurations": [dict(zip(headline.columns, row)) for row in headline.rows],
    }


if __name__ == "__main__":
    cli.run(main)
