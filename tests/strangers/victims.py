"""Folders that somebody may hand on, and the commands that read them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gipo_vla import evaluate, export, report, sweep, train
from gipo_vla.settings import runs
from gipo_vla.sweeping.jobs import Job
from tests.conftest import TINY, TINY_VLA

FAKE = Path(__file__).parents[1] / "sweeping/fake_train.py"
CHECKPOINT = "checkpoints/000001-0000002"
Command = Callable[[Path], object]


def pretend(job: Job, folder: Path, torchrun_ranks: int | None = None) -> list[str]:
    """The command line of a job of a sweep, which only pretends to train (``train_command``)."""
    return [sys.executable, str(FAKE), str(folder), runs.digest(job.settings), "quick"]


# ------------------------------------------------------------------------------------------------- commands


def _report(folder: Path) -> object:
    return report.main([str(folder)])


def _evaluate(folder: Path) -> object:
    return evaluate.main([f"checkpoint={folder}", "eval.episodes_per_task=2"])


def _resume(folder: Path) -> object:
    own = ["iterations=2", "eval.episodes_per_task=2", "telemetry.report=false"]
    return train.main([f"resume={folder}", *own])


def _export(folder: Path) -> object:
    return export.main([f"checkpoint={folder}", f"out={folder.with_name('exported')}"])


def _sweep(folder: Path) -> object:
    return sweep.main([*_job(), "seed=0,1", f"sweep_dir={folder}", "jobs=1"])


def _sweep_on_archive(folder: Path) -> object:
    elsewhere = folder.with_name("sweep")
    return sweep.main([*_job(), "seed=0,1", f"sweep_dir={elsewhere}", f"keep={folder}", "jobs=1"])


def _pack(folder: Path) -> object:
    return report.main(["pack", str(folder)])


COMMANDS: dict[str, Command] = {
    "report": _report,
    "evaluate": _evaluate,
    "resume": _resume,
    "export": _export,
    "sweep": _sweep,
    "sweep on archive": _sweep_on_archive,
    "pack": _pack,
}


# -------------------------------------------------------------------------------------------------- folders


def _once(overrides: tuple[str, ...], without: tuple[str, ...] = ()) -> list[str]:
    """Settings of a run of one iteration."""
    left_out = ("iterations=", *without)
    return [*(text for text in overrides if not text.startswith(left_out)), "iterations=1"]


def _job() -> list[str]:
    return _once(TINY)


def make_run(folder: Path) -> None:
    """A finished run of one iteration, with everything that a run folder can hold."""
    train.main(
        [
            *_once(TINY, without=("telemetry.report",)),
            *("credit=graph", "rollout.group_size=4", f"run_dir={folder}"),
        ]
    )
    graph = {"axes": ["hand x", "hand z"], "iteration": 1, "episodes": 4, "start": 0}
    graph |= {"nodes": [[0.0, 0.1, 2], [0.1, 0.2, 1]], "edges": [[0, 1, 3], [1, -1, 2]]}
    (folder / "graphs").mkdir(exist_ok=True)
    (folder / "graphs/000001.json").write_text(json.dumps(graph))


def _make_checkpoint(folder: Path) -> None:
    train.main([*_once(TINY), f"run_dir={folder.with_name('of')}"])
    (folder.with_name("of") / CHECKPOINT).rename(folder)


def _make_vla_run(folder: Path) -> None:
    own = ("policy.", "replay.segment_length", "eval.episodes_per_task")
    settings = [*_once(TINY, without=own), *TINY_VLA, "eval.episodes_per_task=1"]
    train.main([*settings, f"run_dir={folder}"])


def _make_sweep(folder: Path) -> None:
    """Two jobs, done in this process."""
    planned = sweep.Sweep(sweep.load(*_split([*_job(), "seed=0,1", f"sweep_dir={folder}"])))
    planned.folder.write_list(planned.listed)
    for job in planned.chosen:
        train.main([*job.arguments, f"run_dir={folder / job.name}"])
        planned.folder.record(job, "finished", seconds=2.0)
        (folder / job.name / "log.txt").write_text("done\n")


def _split(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    own, overrides = sweep.split(arguments)
    return dict(own), overrides


def _make_archive(folder: Path) -> None:
    _make_sweep(folder)
    report.main(["pack", str(folder)])


@dataclass(frozen=True)
class Victim:
    """A kind of folder, and who reads what of it."""

    make: Callable[[Path], None]
    readers: Mapping[str, tuple[str, ...]]
    """Commands by the beginning of a file's name; the first that fits. A command that is named twice is drawn
    twice as often."""
    left_out: tuple[str, ...] = field(default=())
    """Beginnings or ends of names of files that no command reads, or that another victim has."""

    def files(self, folder: Path) -> list[str]:
        """What a command may look at in the folder, in a fixed order."""
        found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        return sorted(
            name for name in found if not name.startswith(self.left_out) and not name.endswith(self.left_out)
        )

    def commands(self, name: str) -> tuple[str, ...]:
        """Those that meet a file."""
        return next(own for start, own in self.readers.items() if name.startswith(start))


VICTIMS = {
    "run": Victim(
        make_run,
        {
            "checkpoints/": ("evaluate", "resume", "resume"),
            "config.yaml": ("report", "resume"),
            "metrics.jsonl": ("report", "resume"),
            "evaluations.jsonl": ("report", "resume"),
            "evaluation.json": ("report",),
            "graphs/": ("report",),
            "": ("resume", "report"),
        },
        left_out=("report/", "report.html"),
    ),
    "checkpoint": Victim(_make_checkpoint, {"": ("evaluate",)}, left_out=("rank-",)),
    "sweep": Victim(_make_sweep, {"": ("sweep", "sweep", "report")}, left_out=(".npy", ".safetensors")),
    "archive": Victim(_make_archive, {"": ("report", "sweep on archive", "pack")}),
    "policy": Victim(
        _make_vla_run,
        {"": ("export",)},
        left_out=(".npy", "jsonl", "evaluation.json", "finished.json", ".png", "launch.json"),
    ),
}
