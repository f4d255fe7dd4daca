"""What pyproject.toml declares is what the packages import."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_IMPORTED = {
    "imageio-ffmpeg": "the encoder that imageio writes videos with",
    "accelerate": "peft's and transformers' own loading and dispatching of large models",
}


def imported() -> set[str]:
    """Top-level names of every import statement, inside functions too."""
    names = set()
    for folder in ("gipo_vla", "envs/gipo_envs"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names.add(node.module.partition(".")[0])
    return names


def test_every_declared_dependency_is_used() -> None:
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    declared = {re.split(r"[<>=]", line)[0].lower() for line in lines}
    distributions = packages_distributions()
    used = {name.lower() for module in imported() for name in distributions.get(module, ())}
    assert declared - used == set(NOT_IMPORTED)
