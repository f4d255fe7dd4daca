"""Examples as a user meets them: plugins by name, commands from the repository's root."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import gipo_envs.registry
from gipo_vla.settings import composition, plugins, registry

ROOT = Path(__file__).parents[2]
Example = Callable[[str], ModuleType]


def run(*arguments: str, plugin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command of this Python from the repository's root: ``run("-m", "gipo_vla.train", ...)``.

    Args:
        plugin: what ``GIPO_PLUGINS`` names.
    """
    environment = {name: value for name, value in os.environ.items() if name != plugins.VARIABLE}
    if plugin:
        environment[plugins.VARIABLE] = plugin
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Example]:
    """``example("own_policy")`` imports that module; what it registers is forgotten after the test."""
    gipo_envs.families()
    for one in registry.ALL:
        monkeypatch.setattr(one, "_classes", dict(one.classes()))
    monkeypatch.setattr(gipo_envs.registry, "_families", dict(gipo_envs.registry._families))
    monkeypatch.setattr(composition, "_presets", set(composition._presets))
    monkeypatch.syspath_prepend(str(ROOT))
    imported: list[str] = []

    def load(name: str) -> ModuleType:
        imported.append(f"examples.{name}")
        return importlib.import_module(imported[-1])

    yield load
    for name in imported:
        sys.modules.pop(name, None)
