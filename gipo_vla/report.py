"""Report on runs: ``python -m gipo_vla.report DIR [DIR ...] [out=PATH] [score=SCORE]``.

Learning curves with intervals, success per task and over sigma x capacity, and what staleness did, as
PNG, CSV and one HTML page. What to compare is found from the runs' settings: seeds are replicates, tasks are
strata, whatever else varies makes the configurations.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gipo_envs.errors import UserError
from gipo_vla import cli
from gipo_vla.reporting import Report, archive, results, write_report
from gipo_vla.reporting.summary import HELD_OUT_SCORES, Score
from gipo_vla.reporting.table import show
from gipo_vla.telemetry.console import console

USAGE = """
usage: python -m gipo_vla.report DIR [DIR ...] [out=PATH] [score=SCORE]
       python -m gipo_vla.report pack DIR [SWEEP_DIR/sweep.json]

DIR is a run folder, or a folder that contains run folders or archives of runs at any depth (a sweep). Only
metrics.jsonl is needed; config.yaml and evaluation.json are used where they are.

Writes report.html, PNG and CSV files to DIR/report/ of the first DIR (report.html of a single run goes
directly into its folder), or everything to PATH.

SCORE, by which runs are compared, is success_once (the default), success_at_end or mean_return, in the mode
that the evaluation has in its headline, or the same with actions sampled: sampled.success_once,
sampled.success_at_end, sampled.mean_return.

pack moves the run folders in DIR into compressed archives, DIR/runs-NN.jsonl.xz, fit for committing.
"""


def main(arguments: Sequence[str]) -> int:
    """Write the report, print its headline for people and one line of JSON for programs."""
    if "--help" in arguments:
        print(USAGE.strip())
        return 0
    if arguments and arguments[0] == "pack":
        return _pack([Path(argument).expanduser() for argument in arguments[1:]])
    folders, destination, score = _parse(arguments)
    report = write_report(folders, destination, score)
    for remark in report.comparison.remarks:
        console.print(f"note: {remark}", soft_wrap=True)
    show(results.readable(report.comparison))
    console.print(f"report: {report.page}", soft_wrap=True)
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


def _parse(arguments: Sequence[str]) -> tuple[list[Path], Path | None, Score]:
    folders: list[Path] = []
    destination: Path | None = None
    score: Score = "success_once"
    for argument in arguments:
        key, _, value = argument.partition("=")
        if argument.startswith("--"):
            raise UserError(f"unknown option {argument}: there is --help, out=PATH and score=SCORE")
        if key == "out" and value:
            destination = Path(value).expanduser()
        elif key == "score":
            if value not in HELD_OUT_SCORES:
                raise UserError(f"score={value}: choose one of {', '.join(HELD_OUT_SCORES)}")
            score = next(known for known in HELD_OUT_SCORES if known == value)
        else:
            folders.append(Path(argument).expanduser())
    if not folders:
        raise UserError(
            "name at least one run folder or sweep: python -m gipo_vla.report DIR [DIR ...] [out=PATH]"
        )
    return folders, destination, score


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
