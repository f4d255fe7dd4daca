"""Pin everything that the image installs: ``.venv/bin/python docker/lock.py > docker/requirements.lock``.

Follows the requirements of gipo-vla and of the extras below through this environment, so the image gets the
versions that the tests ran with. (CUDA's own packages are pinned by torch.) Run it again when
constraints.txt has changed and the tests have passed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
EXTRAS = ("libero", "demonstrations")
WITHOUT_DEPENDENCIES = ("hf-libero",)  # as scripts/setup.sh installs it


def closure(texts: Sequence[str], extras: Sequence[str], found: dict[str, str]) -> None:
    """Add requirements, and theirs, to ``found``; those that are not installed here stay open."""
    for text in texts:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        key = canonicalize_name(requirement.name)
        if key in found and not requirement.extras:
            continue
        try:
            found[key] = version(key).partition("+")[0]  # a local build of torch is still that version
        except PackageNotFoundError:
            continue
        closure(requires(key) or [], tuple(requirement.extras), found)


def main() -> None:
    project = tomllib.loads(PROJECT.read_text())["project"]
    found: dict[str, str] = {}
    closure(project["dependencies"], (), found)
    for extra in EXTRAS:
        closure(project["optional-dependencies"][extra], (), found)
    for name in WITHOUT_DEPENDENCIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    print("# Made by docker/lock.py; see there.")
    for name in sorted(found):
        print(f"{name}=={found[name]}")


if __name__ == "__main__":
    main()
