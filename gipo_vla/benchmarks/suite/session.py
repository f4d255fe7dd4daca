"""One process after the other until the parts are measured or the budget is spent."""

from __future__ import annotations

import time
from collections.abc import Sequence

from gipo_vla.benchmarks.suite.process import Boxed
from gipo_vla.benchmarks.suite.records import Line, Records, outcomes
from gipo_vla.benchmarks.suite.stages import PARTS, STAGES, Stage
from gipo_vla.telemetry.console import say


def missing(lines: Sequence[Line], wanted: Sequence[str]) -> list[str]:
    """The parts of which there are no complete figures, in order of value."""
    measured = {part for part, one in outcomes(lines).items() if one["outcome"] == "measured"}
    return [part for part in PARTS if part in wanted and part not in measured]


def measure(records: Records, wanted: Sequence[str], deadline: float) -> None:
    """Measure what is missing, and note what became of every part.

    Args:
        deadline: on the monotonic clock; nothing runs after it.
    """
    began = time.monotonic()
    beside: list[Boxed] = []
    try:
        for stage in STAGES:
            parts = [part for part in missing(records.read(), wanted) if part in stage.parts]
            while parts and (process := _begin(records, stage, parts, deadline)) is not None:
                if stage.beside:
                    beside.append(process)
                    break
                parts = _end(records, process)
        for process in beside:
            _end(records, process)
    finally:
        for process in beside:
            process.kill()
    say(f"{time.monotonic() - began:.0f} s; figures line by line: {records.path}")


def _begin(records: Records, stage: Stage, parts: Sequence[str], deadline: float) -> Boxed | None:
    """Start a process for parts of a stage; None if there is too little time left, which is noted."""
    left = deadline - time.monotonic()
    if left < stage.least:
        reason = f"{max(left, 0.0):.0f} s were left of the budget, and it wants {stage.least:.0f} s at least"
        _conclude(records, parts, "left out", reason, 0.0)
        return None
    seconds = min(stage.box, left)
    smaller = f" (instead of {stage.box:.0f})" if seconds < stage.box else ""
    say(f"{', '.join(parts)}: at most {seconds:.0f} s{smaller}")
    return Boxed(stage.name, records.path.parent, seconds, parts)


def _end(records: Records, process: Boxed) -> list[str]:
    """Wait for a process, note what became of the parts that it has not closed, and return those that are
    worth another one: what came after the part that ended it."""
    outcome, reason, seconds = process.wait()
    left = missing(records.read(), process.parts)
    again = left[1:] if outcome == "failed" else []
    _conclude(records, [part for part in left if part not in again], outcome, reason, seconds)
    return again


def _conclude(records: Records, parts: Sequence[str], outcome: str, reason: str, seconds: float) -> None:
    for part in parts:
        records.add(part, outcome=outcome, reason=reason, seconds=round(seconds, 1))
        say(f"{part}: {outcome}: {reason}")
