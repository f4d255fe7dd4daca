"""Whether a run that was stopped and resumed writes the bytes of one that was not, on this device; with and
without ``learner.deterministic``, without which nothing is promised on a GPU."""

from __future__ import annotations

import shutil
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gipo_envs.errors import RunStoppedError
from gipo_vla import foreign
from gipo_vla.benchmarks.suite.job import Job
from gipo_vla.benchmarks.suite.small_runs import SmallRun, settings_of


def measure(job: Job) -> None:
    """Make three runs of each kind, those that do not wait for another side by side.

    Raises:
        RunStoppedError: one of them did not go well.
    """
    base = job.folder / "resume"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    own = settings_of(base / "recording", job.settings.learner.device)
    modes = {"deterministic": "true", "default": "false"}
    begun = {}
    for mode, value in modes.items():
        same = [*own, f"learner.deterministic={value}"]
        begun[f"{mode}-whole"] = [*same, f"run_dir={base / mode}-whole"]
        begun[f"{mode}-stopped"] = [*same, f"run_dir={base / mode}-stopped", "stop_after=2"]
    _all_well({name: SmallRun(base / f"{name}.log", *words) for name, words in begun.items()})
    stopped = {name: base / name for name in begun if name.endswith("stopped")}
    _all_well({n: SmallRun(base / f"{n}-2.log", f"resume={folder}") for n, folder in stopped.items()})
    found = {mode: compared(base / f"{mode}-whole", base / f"{mode}-stopped") for mode in modes}
    job.tell("resume", found)
    job.close("resume")


def _all_well(begun: dict[str, SmallRun]) -> None:
    problems = {name: problem for name, run in begun.items() if (problem := run.ended()) is not None}
    if problems:
        raise RunStoppedError("; ".join(f"{name}: {problem}" for name, problem in problems.items()))


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
