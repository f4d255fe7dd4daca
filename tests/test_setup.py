"""scripts/setup.sh: which build of torch it installs.

The interpreter of .venv is a stand-in that does what pip would.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[1] / "scripts/setup.sh"
INTERPRETER = """#!/usr/bin/env bash
# "torch" holds what is installed: cpu or cuda; "general" what pip installs as torch without a suffix.
case "$*" in
    *torch.version.cuda*) [ "$(cat torch 2>/dev/null)" = cuda ] ;;
    *"import torch"*) [ -f torch ] ;;
    *"pip uninstall"*torch) rm torch ;;
    *"pip install"*torch==9.9+cpu) echo cpu >torch ;;
    *"pip install"*torch==9.9) cp general torch ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SETUP, tmp_path / "scripts")
    (tmp_path / "constraints.txt").write_text("torch==9.9\n")
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "general").write_text("cuda\n")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, text in {".venv/bin/python": INTERPRETER, "nvidia-smi": "#!/bin/sh\nexit 9\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def set_up(project: Path, torch: str | None = None) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if name != "GIPO_TORCH"}
    own |= {} if torch is None else {"GIPO_TORCH": torch}
    own["PATH"] = f"{project}:{own['PATH']}"  # its nvidia-smi finds no GPU
    command = ["bash", str(project / "scripts/setup.sh")]
    return subprocess.run(command, env=own, capture_output=True, text=True)


def installed(project: Path) -> str:
    return (project / "torch").read_text().strip()


def test_a_machine_without_gpu_gets_the_build_that_its_user_wants(project: Path) -> None:
    done = set_up(project)
    assert done.returncode == 0 and installed(project) == "cpu"
    assert "GIPO_TORCH=cuda" in done.stderr
    assert set_up(project, "cuda").returncode == 0 and installed(project) == "cuda"
    assert set_up(project).returncode == 0 and installed(project) == "cuda"  # it stays
    assert set_up(project, "cpu").returncode == 0 and installed(project) == "cpu"


def test_a_build_without_cuda_is_refused(project: Path) -> None:
    (project / "general").write_text("cpu\n")
    done = set_up(project, "cuda")
    assert done.returncode == 2 and not (project / ".venv/.gipo_vla").exists()
    assert [line for line in done.stderr.splitlines() if line.startswith("error: GIPO_TORCH=cuda, but")]


def test_another_word_is_refused_in_one_line(project: Path) -> None:
    done = set_up(project, "rocm")
    assert done.returncode == 2 and done.stderr.startswith("error: GIPO_TORCH is rocm")
    assert done.stderr.count("\n") == 1
