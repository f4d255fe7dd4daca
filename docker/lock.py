"""Pin everything that the image installs: ``.venv/bin/python docker/lock.py > docker/requirements.lock``.

Follows the requirements of gipo-vla and of the extras below through this environment, so the image gets the
versions that the tests ran with. (CUDA's own packages are pinned by torch.) Run it again when
constraints.txt has changed and the tests have passed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
EXTRAS = ("libero", "demonstrations")
WITHOUT_DEPENDENCIES = ("hf-libero",)  # as scripts/setup.sh installs it


def known_version(name: str) -> str | None:
    """Of what is installed here, else as constraints.txt pins it."""
    with suppress(PackageNotFoundError):
        return version(name).partition("+")[0]  # a local build of torch is still that version
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        pinned, _, number = line.partition("==")
        if canonicalize_name(pinned) == name:
            return number
    return None


def closure(texts: Sequence[str], extras: Sequence[str], found: dict[str, str]) -> None:
    """Add requirements, and theirs, to ``found``, where a version is known."""
    for text in texts:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        key = canonicalize_name(requirement.name)
        if key in found and not requirement.extras:
            continue
        known = known_version(key)
        if known is None:
            continue
        found[key] = known
        with suppress(PackageNotFoundError):
            closure(requires(key) or [], tuple(requirement.extras), found)


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, str] = {}
    closure(project["dependencies"], (), found)
    for extra in EXTRAS:
        closure(project["optional-dependencies"][extra], (), found)
    found |= {name: known for name in WITHOUT_DEPENDENCIES if (known := known_version(name))}
    print("# Made by docker/lock.py; see there.")
    for name in sorted(found):
        print(f"{name}=={found[name]}")


if __name__ == "__main__":
    main()
