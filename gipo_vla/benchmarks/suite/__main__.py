"""One stage, as the suite starts it: ``python -m gipo_vla.benchmarks.suite STAGE FOLDER ENDS PARTS``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from gipo_vla import cli
from gipo_vla.benchmarks.suite.job import Job
from gipo_vla.benchmarks.suite.records import Records
from gipo_vla.settings import runs
from gipo_vla.settings.schema import TrainingSettings


def main(arguments: Sequence[str]) -> None:
    stage, folder, ends, parts = arguments
    settings = runs.read_run(Path(folder) / "settings.yaml")
    assert isinstance(settings, TrainingSettings)
    records = Records(Path(folder) / "suite.jsonl")
    job = Job(settings, records, tuple(parts.split(",")), float(ends))
    import_module(f"gipo_vla.benchmarks.suite.{stage}").measure(job)


if __name__ == "__main__":
    cli.run(main)
