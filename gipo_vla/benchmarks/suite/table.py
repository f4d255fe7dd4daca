"""The suite's figures in one table, beside the goals and what was counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from gipo_vla.benchmarks.suite.records import Line, figures, outcomes
from gipo_vla.benchmarks.suite.stages import PARTS
from gipo_vla.run.memory import gib
from gipo_vla.telemetry import console

GOALS = {"learner": 30.0, "end_to_end": 25.0}
"""Trained samples a second of the 7B on one H200."""
Row = tuple[str, str, str, str]
"""What, measured, goal, counted."""


def summary(lines: Sequence[Line], wanted: Sequence[str], goals: bool) -> dict[str, Any]:
    """Everything for programs: what became of each part and its figures."""
    closed = outcomes(lines)
    parts = {
        part: {
            "outcome": closed[part]["outcome"],
            "reason": closed[part]["reason"],
            "seconds": closed[part]["seconds"],
            "figures": figures(lines, part),
        }
        for part in PARTS
        if part in closed and part in wanted
    }
    return {"parts": parts, "goals": GOALS if goals else {}}


def table(lines: Sequence[Line], wanted: Sequence[str], goals: bool) -> Table:
    """For people."""
    closed = outcomes(lines)
    rows: list[Row] = []
    for part in PARTS:
        if part not in wanted:
            continue
        rows += [row for row in _rows(lines, part, GOALS if goals else {}) if part != "counted"]
        outcome = closed.get(part, {"outcome": "not begun", "reason": ""})
        if outcome["outcome"] != "measured":
            rows.append((part, f"{outcome['outcome']}: {outcome['reason']}", "", ""))
    columns = ("", "measured", "goal", "counted")
    return console.table("suite: rates a second", columns, rows, left=("", "measured"))


def _rows(lines: Sequence[Line], part: str, goals: dict[str, float]) -> Iterator[Row]:
    counted = next(iter(figures(lines, "counted")), None)
    for found in figures(lines, part):
        yield from ROWS[part](found, counted, f"{goals[part]:.0f}" if part in goals else "")


def _doctor(found: dict[str, Any], counted: dict[str, Any] | None, goal: str) -> Iterator[Row]:
    yield "doctor", found["doctor"], "", ""
    for name in ("GPUs", "OpenGL", "deepspeed"):
        check = found["checks"][name]
        yield f"  {name}", f"{check['state']}: {check['detail']}", "", ""
    for name, check in found["checks"].items():
        if check["state"] == "failed" and name not in ("GPUs", "OpenGL", "deepspeed"):
            yield f"  {name}", f"failed: {check['detail']}", "", ""


def _floor(found: dict[str, Any], counted: dict[str, Any] | None, goal: str) -> Iterator[Row]:
    about = f"{found['dtype']}, {found['act_batch']} acted, {found['micro_batch']} evaluated at a time"
    yield f"|log rho| floor, {about}", _of_floor(found), "", ""


def _of_floor(found: dict[str, float]) -> str:
    return f"mean {found['mean']:.1e}, p99.9 {found['p999']:.1e}, max {found['max']:.1e}"


def _learner(found: dict[str, Any], counted: dict[str, Any] | None, goal: str) -> Iterator[Row]:
    name = f"learner, micro-batch of {found['rows']}"
    if "out_of_memory" in found:
        yield name, f"out of memory: {found['out_of_memory']}", "", ""
        return
    same = counted is not None and counted["micro_batch"] == found["rows"]
    roof = f"{1e3 / counted['learner_ms_per_sample']:.1f}" if counted and same else ""
    yield name, f"{found['samples_per_second']:.1f} samples{_memory(found)}", goal, roof
    yield "  |log rho| after its updates", _of_floor(found["floor_after_updates"]), "", ""
    if found["updates_skipped"]:
        yield "  updates skipped as not finite", str(found["updates_skipped"]), "", ""


def _act(found: dict[str, Any], counted: dict[str, Any] | None, goal: str) -> Iterator[Row]:
    roof = f"{1e3 / counted['act_ms_per_decision']:.1f}" if counted and found["of_the_run"] else ""
    decisions = f"{found['decisions_per_second']:.1f} decisions{_memory(found)}"
    yield f"act, batch of {found['batch']}", decisions, "", roof


def _end_to_end(found: dict[str, Any], counted: dict[str, Any] | None, goal: str) -> Iterator[Row]:
    roof = f"{1e3 / counted['end_to_end_ms_per_sample']:.1f}" if counted else ""
    name = f"end to end, each transition used {found['uses_of_a_transition']:.2g} times"
    yield name, f"{found['samples_per_second']:.1f} samples", goal, roof
    yield "  collected meanwhile", f"{found['env_steps_per_second']:.1f} env steps", "", ""
    yield "  on", found["observations"], "", ""
    for memory, key in (("GPU memory", "device"), ("process", "process"), ("workers", "worker")):
        if found[f"{key}_bytes"] is not None and found[f"{key}_bytes_planned"] is not None:
            yield f"  {memory}", _memory(found, key).removeprefix("; "), "", ""


def _memory(found: dict[str, Any], key: str = "device") -> str:
    used, planned = found[f"{key}_bytes"], found[f"{key}_bytes_planned"]
    return "" if used is None else f"; {gib(used)}, planned {gib(planned)}"


def _copy(found: dict[str, Any], counted: dict[str, Any] | None, goal: str) -> Iterator[Row]:
    milliseconds, size = 1e3 * found["synchronize_seconds"], gib(found["synchronized_bytes"])
    yield "copy to the twin", f"{milliseconds:.2f} ms for {size}", "", ""


def _resume(found: dict[str, Any], counted: dict[str, Any] | None, goal: str) -> Iterator[Row]:
    yield f"stopped and resumed, {found['mode']}", _compared(found), "", ""


def _compared(one: dict[str, Any]) -> str:
    if "failed" in one:
        return f"failed: {one['failed']}"
    if one["equal"]:
        return f"same bytes over {one['iterations']} iterations"
    few = ", ".join(one["differing"][:3])
    return (
        f"differs from iteration {one['first_iteration']} on in {len(one['differing'])} values ({few}, ...)"
    )


def _ranks(found: dict[str, Any], counted: dict[str, Any] | None, goal: str) -> Iterator[Row]:
    told = f"works, {found['updates']} updates" if found["works"] else found["answer"]
    yield f"two ranks on one device, {found['way']}", told, "", ""


ROWS = {
    "counted": lambda *_: iter(()),
    "doctor": _doctor,
    "floor": _floor,
    "learner": _learner,
    "act": _act,
    "end_to_end": _end_to_end,
    "copy": _copy,
    "resume": _resume,
    "ranks": _ranks,
}
