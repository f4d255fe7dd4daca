"""Whether a run that was stopped and resumed writes the bytes of one that was not, on this device; with and
without ``learner.deterministic``, without which nothing is promised on a GPU."""

from __future__ import annotations

import shutil
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gipo_vla import foreign
from gipo_vla.benchmarks.suite.job import Job
from gipo_vla.benchmarks.suite.small_runs import SmallRun, settings_of


def measure(job: Job) -> None:
    """Make three runs of each kind, those that do not wait for another side by side."""
    base = job.folder / "resume"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    own = settings_of(base / "recording", job.settings.learner.device)
    modes = {"deterministic": "true", "default": "false"}
    first = {}
    for mode, value in modes.items():
        same = [*own, f"learner.deterministic={value}"]
        whole, stopped = base / f"{mode}-whole", base / f"{mode}-stopped"
        first[mode] = [
            SmallRun(base / f"{mode}-1.log", *same, f"run_dir={whole}", "stop_after=4"),
            SmallRun(base / f"{mode}-2.log", *same, f"run_dir={stopped}", "stop_after=2"),
        ]
    problems = {mode: [run.ended() for run in begun] for mode, begun in first.items()}
    second = {
        mode: SmallRun(base / f"{mode}-3.log", f"resume={base / mode}-stopped", "stop_after=4")
        for mode in modes
        if not any(problems[mode])
    }
    for mode, run in second.items():
        problems[mode].append(run.ended())
    for mode in modes:
        told = next(filter(None, problems[mode]), None)
        one = compared(base / f"{mode}-whole", base / f"{mode}-stopped") if told is None else {"failed": told}
        job.tell("resume", {"mode": mode, **one}, mode)
    job.close("resume")


def compared(whole: Path, resumed: Path) -> dict[str, Any]:
    """Whether two runs have the same metrics.jsonl, and if not, from which iteration on and in what."""
    files = [folder / "metrics.jsonl" for folder in (whole, resumed)]
    if files[0].read_bytes() == files[1].read_bytes():
        return {"equal": True, "iterations": sum(1 for _ in foreign.json_lines(files[0]))}
    for number, (one, other) in enumerate(zip_longest(*map(foreign.json_lines, files), fillvalue={}), 1):
        keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        if keys:
            return {"equal": False, "first_iteration": number, "differing": keys}
    return {"equal": False, "first_iteration": None, "differing": []}
