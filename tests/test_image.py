"""docker/: what is installed is what was tested, and little else travels."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import which

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "docker/Dockerfile"


def pins(path: Path) -> dict[str, str]:
    """Canonical name to version of every ``name==version`` in a file."""
    found = re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_lock_agrees_with_the_versions_that_are_tested() -> None:
    locked, tested = pins(ROOT / "docker/requirements.lock"), pins(ROOT / "constraints.txt")
    assert len(locked) > 80 and {"torch", "deepspeed", "mujoco", "transformers"} < set(locked)
    other = {
        name: (version, tested[name])
        for name, version in locked.items()
        if tested.get(name, version) != version
    }
    assert not other, "run docker/lock.py again"


def test_the_base_is_pinned_and_nobody_is_root() -> None:
    text = DOCKERFILE.read_text()
    assert re.search(r"^FROM nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d\d\.04$", text, re.MULTILINE)
    users = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert users and users[-1] not in ("root", "0")


def test_what_is_copied_travels() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for line in re.findall(r"^COPY (.+)$", DOCKERFILE.read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_the_caches_are_mounted_where_the_user_may_write() -> None:
    """Folders above a mounted one that the image lacks would be made for root."""
    text = DOCKERFILE.read_text()
    (made,) = re.findall(r"install --directory --owner gipo (.+)$", text.replace("\\\n", " "), re.MULTILINE)
    for page in (text, (ROOT / "docs/cluster.md").read_text()):
        (command,) = re.findall(r"docker run .*?gipo_vla ", page.replace("\n", " "))
        mounted = set(re.findall(r'-v "[^":]+:([^"]+)"', command))
        assert {"/home/gipo/.cache/huggingface", "/home/gipo/.cache/libero"} < mounted <= set(made.split())
        assert "--ulimit memlock=-1" in command
        assert "driver of branch 580" in page


@pytest.mark.skipif(which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_has_nothing_to_say() -> None:
    subprocess.run([str(which("hadolint")), str(DOCKERFILE)], check=True)
