"""Ctrl-C in the first seconds of a command: one line and exit status 130, whatever is being imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ("train", "sft", "evaluate", "sweep", "report", "export", "doctor", "benchmark")
INTERRUPT = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
"""A library during whose import somebody presses Ctrl-C."""
SWALLOWED = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except BaseException:
    pass
"""
"""A library that would not let the KeyboardInterrupt through."""


def interrupted(command: str, library: str, source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command in whose place of a library stands this source."""
    (folder / f"{library}.py").write_text(source)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    words = [sys.executable, "-m", f"gipo_vla.{command}", "--help"]
    return subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("source", [INTERRUPT, SWALLOWED], ids=["raised", "swallowed"])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_while_importing_gives_one_line(command: str, source: str, tmp_path: Path) -> None:
    # numpy and yaml are the first libraries that commands import; torch comes with them or later.
    ended = interrupted(command, "numpy", source, tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr.split()) == (130, "", ["interrupted"])


@pytest.mark.parametrize("command", ["train", "sft"])
def test_an_interrupt_while_torch_is_imported(command: str, tmp_path: Path) -> None:
    ended = interrupted(command, "torch", SWALLOWED, tmp_path)
    assert (ended.returncode, ended.stderr.split()) == (130, ["interrupted"])
