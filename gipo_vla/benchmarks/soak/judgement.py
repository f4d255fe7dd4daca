"""Whether a run that is finished lost anything: beside a run of the same settings that nobody disturbed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from gipo_vla.telemetry.metrics import read_json_lines

CONFIDENCE = 0.999
"""Of each seed's interval: a soak of hundreds of runs must not see a loss in chance."""
LOCKS = (".lock", ".sweep.lock")


def problems_of(run: Path, reference: Path, iterations: int, seeds: Sequence[Path] | None) -> list[str]:
    """What is wrong with a finished run; empty if nothing is.

    Args:
        reference: an undisturbed run of the same seed.
        seeds: undisturbed runs of several seeds, if the run was to lose workers; None: it must not have.
    """
    missing = [name for name in ("finished.json", "evaluation.json") if not (run / name).is_file()]
    if missing:
        return [f"{name} is missing" for name in missing]
    found = out_of_order(run, iterations)
    if not workers_lost(run):
        names = ("metrics.jsonl", "evaluation.json")
        same = [(run / name).read_bytes() == (reference / name).read_bytes() for name in names]
        return found + [
            f"{name} is not that of the reference" for name, equal in zip(names, same) if not equal
        ]
    if seeds is None:
        return [*found, "a worker was lost that nobody had killed or stopped"]
    low, high = interval(_evaluation(path) for path in seeds)
    success = _evaluation(run)["success_once"]
    if not low <= success <= high:
        found.append(f"success {success:.3f} is outside {low:.3f} .. {high:.3f} of undisturbed seeds")
    return found


def workers_lost(run: Path) -> int:
    """Workers that the run replaced, as its metrics have it."""
    rows = read_json_lines(run / "metrics.jsonl")
    return int(rows[-1]["rollout/worker_faults"]) if rows else 0


def out_of_order(run: Path, iterations: int) -> list[str]:
    """A line of metrics that is doubled, missing or cut short."""
    text = (run / "metrics.jsonl").read_text()
    found = [row["iteration"] for row in read_json_lines(run / "metrics.jsonl")]
    whole = text.endswith("\n") and len(found) == text.count("\n")
    if whole and found == list(range(1, iterations + 1)):
        return []
    return [f"metrics.jsonl has the iterations {found} instead of 1 to {iterations}, or half a line"]


def leftovers(folder: Path) -> list[str]:
    """Temporary files, half checkpoints, and what everybody may write."""
    found = []
    for path in [folder, *sorted(folder.rglob("*"))]:
        name = path.relative_to(folder)
        if (path.name.startswith(".") and path.name not in LOCKS) or path.name.endswith(".tmp"):
            found.append(f"{name} was left behind")
        if path.name.startswith("damaged-"):
            found.append(f"{name} was left behind")
        if not path.is_symlink() and path.stat().st_mode & 0o002:
            found.append(f"{name} is for everybody to write")
    return found


def interval(evaluations: Iterable[dict[str, Any]]) -> tuple[float, float]:
    """From the lowest to the highest end of the seeds' Wilson intervals of ``success_once``: what a run of
    another chance may come to."""
    ends = []
    for one in evaluations:
        successes = round(one["success_once"] * one["episodes"])
        own = binomtest(successes, one["episodes"]).proportion_ci(CONFIDENCE, method="wilson")
        ends.append((float(own.low), float(own.high)))
    return min(low for low, _ in ends), max(high for _, high in ends)


def _evaluation(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return values
