"""Whether a run's small data can be reported on, which may have come from anybody, in a folder or an archive.

A report trusts what has passed: numbers are numbers of a size that can be drawn, rows are in order, and names
are text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from gipo_vla import foreign
from gipo_vla.telemetry.metrics import fits

MOST_CELLS = 50_000_000
"""Values in the metrics of one run."""
LONGEST_NAME = 300
"""Characters of a name that a figure or a table can show."""


def problem(record: Mapping[str, Any]) -> str | None:
    """What makes the record of a run (``archive`` has its shape) no run's; None: nothing."""
    told = ((part, problem_of(part, record.get(part))) for part in _CHECKS)
    return next((f"{part} {wrong}" for part, wrong in told if wrong is not None), None)


def problem_of(part: str, value: Any) -> str | None:
    """What is wrong with one part of a record; None: nothing."""
    return _CHECKS[part](value)


def _name(value: Any) -> str | None:
    return None if _is_name(value) else "is no text of a sensible length"


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_NAME and value.isprintable()


def _overrides(value: Any) -> str | None:
    return None if value is None or _are_names(value) else "is no list of texts"


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_name, value))


def _config(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return "is no mapping"
    env = value.get("env", {})
    if not isinstance(env, Mapping):
        return "has an env that is no mapping"
    task = env.get("task", "task")
    tasks = task if isinstance(task, (list, tuple)) else [task]
    # Tasks may also be given by their number (type: a truth value is an int too).
    if not tasks or not all(_is_name(own) or type(own) is int for own in tasks):
        return "has an env.task that is no name"
    if any(isinstance(value.get(name, 0), (Mapping, list)) for name in ("seed", "iterations", "experiment")):
        return "has no single seed, number of iterations, or experiment"
    return _names_in(value)


def _names_in(value: Any) -> str | None:
    """What is wrong with the keys and texts of nested settings."""
    if isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list):
        parts = value
    else:
        return None if not isinstance(value, str) or _is_name(value) else "has a text that cannot be shown"
    return next((told for part in parts if (told := _names_in(part)) is not None), None)


def rows_problem(metrics: Mapping[str, Any]) -> str | None:
    """What is wrong with metrics, by columns, that are to be drawn over env steps; None: nothing."""
    if not any(metrics.values()):
        return None
    if not {"iteration", "env_steps"} <= metrics.keys():
        return "has no iteration and env_steps"
    iterations, env_steps = metrics["iteration"], metrics["env_steps"]
    if not _counts(iterations) or not _counts(env_steps):
        return "has an iteration or env_steps that is no count"
    ordered = all(a < b for a, b in pairwise(iterations))
    if not ordered or any(a > b for a, b in pairwise(env_steps)):
        return "is not in the order of its iterations"
    return None


def _evaluations(value: Any) -> str | None:
    if value is None:
        return None
    told = _columns(value)
    if told is None and not _counts([steps for steps in value.get("env_steps", []) if steps is not None]):
        return "has an env_steps that is no count"
    return told


def _counts(column: Sequence[Any]) -> bool:
    return set(map(type, column)) <= {int} and (not column or (min(column) >= 0 and max(column) < 2**53))


def _columns(value: Any) -> str | None:
    if not isinstance(value, Mapping) or not all(isinstance(column, list) for column in value.values()):
        return "is no table"
    if len({len(column) for column in value.values()}) > 1:
        return "has columns of different lengths"
    if sum(map(len, value.values())) > MOST_CELLS:
        return f"has more than {MOST_CELLS:,} values"
    for name, column in value.items():
        if not _is_name(name):
            return "has a name that cannot be shown"
        texts = name == "mode"
        if not all(one is None or (_is_name(one) if texts else fits(name, one)) for one in column):
            return f"has a {name} that is no number"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, bool) or foreign.is_number(value)


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(foreign.is_number, value))


def _evaluation(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not _is_name(value.get("mode", "")):
        return "is no mapping with a mode"
    for mode in ("greedy", "sampled"):
        if value.get(mode) is not None and (told := _rates(value[mode])) is not None:
            return f"of {mode} {told}"
    return _rates({name: own for name, own in value.items() if name not in ("mode", "greedy", "sampled")})


def _rates(values: Any, with_tasks: bool = True) -> str | None:
    if not isinstance(values, Mapping):
        return "is no mapping"
    for name, value in values.items():
        if name == "tasks" and with_tasks:
            if not isinstance(value, Mapping) or not value or not all(map(_is_name, value)):
                return "has tasks without names"
            if any(told := _rates(own, with_tasks=False) for own in value.values()):
                return f"of a task {told}"
        elif name.endswith("_interval_95"):
            if not _is_interval(value):
                return f"has a {name} of something else than two numbers"
        elif name in ("mode", "versus"):
            continue
        elif value is not None and not _is_number(value):
            return f"has a {name} that is no number"
    return None


def _finished(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return "is no mapping"
    counted = [value.get(name) for name in ("env_steps", "session_seconds", "iterations")]
    good = all(one is None or (foreign.is_number(one) and one >= 0) for one in counted)
    return None if good else "has counts that are no numbers"


_CHECKS = {
    "name": _name,
    "overrides": _overrides,
    "config": _config,
    "metrics": _columns,
    "evaluations": _evaluations,
    "evaluation": _evaluation,
    "finished": _finished,
}


def sweep_problem(listed: Mapping[str, Any]) -> str | None:
    """What makes a mapping no sweep.json; None: nothing."""
    jobs = listed.get("jobs")
    if not isinstance(jobs, list):
        return "has no list of jobs"
    for job in jobs:
        if not isinstance(job, Mapping) or not _is_name(job.get("name")) or "/" in job["name"]:
            return "has a job without a name"
        if not _are_names(job.get("overrides")):
            return f"says not what {job['name']} was started with"
        factors = job.get("factors", {})
        if not isinstance(factors, Mapping) or _names_in(factors) is not None:
            return f"has factors of {job['name']} that are no settings"
    return None
