"""What a process that has a run's folder removes from it."""

from __future__ import annotations

import os
from pathlib import Path

from gipo_vla.checkpoint.run_folder import RunFolder


def test_temporary_files_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.graphs.mkdir()
    dead = [".writable", ".config.yaml.tmp", f".report.html.{2**30}.tmp", f"graphs/.000001.json.{2**99}.tmp"]
    kept = ["config.yaml", f".report.html.{os.getpid()}.tmp", "graphs/000001.json", "mine.tmp"]
    for name in dead + kept:
        (tmp_path / name).touch()
    (folder.graphs / ".folder.tmp").mkdir()
    folder.remove_leftovers()
    assert not [name for name in dead if (tmp_path / name).exists()]
    assert all((tmp_path / name).exists() for name in kept)
