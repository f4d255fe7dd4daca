"""Importing LIBERO asks nothing, says nothing and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gipo_envs import EnvironmentSettings, UserError, make, make_spec
from gipo_envs.libero import installation

PROGRAM = """
import json, os, sys
before = dict(os.environ)
from gipo_envs.libero import installation
installation.environments()
import robosuite.utils.log_utils, logging
handlers = logging.getLogger("robosuite_logs").handlers
print(json.dumps({
    "environment": dict(os.environ) == before,
    "torch": "torch" in sys.modules,
    "files": [h.baseFilename for h in handlers if isinstance(h, logging.FileHandler)],
    "libero.libero.benchmark": "libero.libero.benchmark" in sys.modules,
}))
"""


@pytest.mark.medium
@pytest.mark.parametrize("variables", [{}, {"CUDA_VISIBLE_DEVICES": "3", "MUJOCO_EGL_DEVICE_ID": "0"}])
def test_import_leaves_no_trace(libero_installed: Path, tmp_path: Path, variables: dict[str, str]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,  # a prompt would fail
        cwd=tmp_path,
        env={"HOME": str(home), "PATH": os.environ["PATH"], **variables},
    )
    assert json.loads(result.stdout) == {
        "environment": True,
        "torch": False,
        "files": [],
        "libero.libero.benchmark": False,
    }
    assert not result.stderr
    written = {path.relative_to(home).parts[:2] for path in home.rglob("*") if path.is_file()}
    # numba keeps compiled functions there if it may not write beside the sources.
    assert written <= {(".cache", "gipo_vla"), (".cache", "numba")}


@pytest.mark.parametrize("function", [make_spec, make])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, function: object) -> None:
    found = importlib.util.find_spec

    def without_robosuite(name: str, *arguments: object) -> object:
        return None if name == "robosuite" else found(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(importlib.util, "find_spec", without_robosuite)
    installation.package_folder.cache_clear()
    from gipo_envs.libero import catalogue

    catalogue.tasks.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    settings = EnvironmentSettings(family="libero_goal", task="all", reward="sparse")
    try:
        with pytest.raises(UserError, match=r"not installed.*\./scripts/setup\.sh libero") as caught:
            function(settings)  # type: ignore[operator]
        assert "\n" not in str(caught.value)
    finally:
        installation.package_folder.cache_clear()
