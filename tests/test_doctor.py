"""The doctor says what works, what does not, and what to install."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gipo_vla import doctor
from gipo_vla.doctor import Check, Finding

CHECKS = {
    "python",
    "versions",
    "processor",
    "disk",
    "shared memory",
    "torch",
    "GPUs",
    "deepspeed",
    "OpenGL",
    "metaworld",
    "libero",
    "wandb",
}


@pytest.mark.medium
def test_this_machine(tmp_path: Path) -> None:
    """Everything is tried; training would work, or these tests would not run."""
    result = subprocess.run(
        [sys.executable, "-m", "gipo_vla.doctor"], capture_output=True, text=True, cwd=tmp_path
    )
    answer = json.loads(result.stdout)  # one line, nothing else
    assert answer["ready"], result.stderr
    assert result.returncode == 0
    assert set(answer["checks"]) == CHECKS
    for check in answer["checks"].values():
        assert set(check) == {"state", "detail", "remedy", "seconds"}
    assert "deepspeed" in result.stderr
    assert "one update made" in answer["checks"]["deepspeed"]["detail"]
    assert "env steps a second" in answer["checks"]["metaworld"]["detail"]
    if os.environ.get("LIBERO_ASSETS"):
        assert answer["checks"]["libero"]["state"] == "ok", answer["checks"]["libero"]
    else:
        assert "scripts/setup.sh" in str(answer["checks"]["libero"]) or "env.assets" in str(
            answer["checks"]["libero"]
        )


def _examine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *checks: Check
) -> tuple[int, dict[str, Any], str]:
    monkeypatch.setattr(doctor, "CHECKS", checks)
    status = doctor.examine()
    captured = capsys.readouterr()
    return status, json.loads(captured.out), captured.err


def test_what_is_needed_decides(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> Finding:
        raise OSError("no such library")

    works = Check("disk", lambda: Finding("ok", "plenty"), needed=True)
    optional = Check("pictures", broken, needed=False)
    needed = Check("torch", lambda: Finding("failed", "missing", "install it"), needed=True)
    status, answer, table = _examine(monkeypatch, capsys, works, optional)
    assert (status, answer["ready"]) == (0, True)
    assert answer["checks"]["pictures"]["state"] == "note"
    assert "no such library" in answer["checks"]["pictures"]["detail"]
    status, answer, table = _examine(monkeypatch, capsys, works, needed)
    assert (status, answer["ready"], answer["doctor"]) == (1, False, "not ready")
    assert "install it" in table


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_required", lambda: ["numpy", "no-such-package"])
    assert doctor.check_versions() == Finding("failed", "missing: no-such-package", "./scripts/setup.sh")
    monkeypatch.setattr(doctor, "_required", lambda: ["numpy"])
    monkeypatch.setattr(doctor, "_pins", lambda: [("numpy", "0.1"), ("not-installed", "1")])
    finding = doctor.check_versions()
    assert finding.state == "note"
    assert finding.detail == f"numpy {importlib.metadata.version('numpy')} (tested: 0.1)"


def test_a_source_tree_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    installed = doctor._required()
    monkeypatch.setattr(importlib.metadata, "requires", nowhere)
    assert set(doctor._required()) == set(installed) > {"torch", "deepspeed"}


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    def free(gigabytes: float) -> Finding:
        usage = type("usage", (), {"free": int(gigabytes * 2**30)})
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
        return doctor.check_disk()

    assert [free(size).state for size in (0.5, 5, 500)] == ["failed", "note", "ok"]


def test_probes_that_fail() -> None:
    finding = doctor._probe("nothing-of-the-kind", "reinstall", timeout=120.0)
    assert finding.state == "failed"
    assert "there is no such probe" in finding.detail  # a UserError's own line
    assert finding.remedy == ""
    finding = doctor._probe("metaworld", "reinstall", timeout=0.01)
    assert "did not end" in finding.detail
    assert finding.remedy == "reinstall"


def test_wrong_arguments() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "gipo_vla.doctor", "seed=1"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr == "error: unknown option 'seed'; available: env.assets, probe, timeout\n"


def test_it_runs_where_an_installation_is_incomplete() -> None:
    """What it looks for is imported by the checks, each of which may fail."""
    program = (
        "import sys; from gipo_vla import doctor; doctor.main(['--help']);"
        "print([name for name in ('torch', 'hydra', 'mujoco', 'deepspeed', 'wandb') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
