"""Files for people who work on the project: what they call is there, and they agree with pyproject.toml."""

from __future__ import annotations

import os
import re
import tomllib
from typing import Any

import yaml

from tests.docs.pages import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read_yaml(path: str) -> dict[Any, Any]:
    return yaml.safe_load((ROOT / path).read_text())


def test_citation_is_of_this_version() -> None:
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert f"## [{citation['version']}] - {citation['date-released']}" in (ROOT / "CHANGELOG.md").read_text()


def test_changelog_keeps_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", one) for one in versions[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= kinds


def test_hooks_are_the_checks_of_the_test_script() -> None:
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"  # nothing is downloaded
    script = (ROOT / "scripts" / "test.sh").read_text()
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].removesuffix(" --force-exclude") in script
    assert {hook["id"] for hook in repository["hooks"]} == {"ruff", "ruff-format", "mypy"}


def test_hosted_machines_run_the_same_checks() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    job = yaml.safe_load(text)["jobs"]["checks"]
    assert [step["run"] for step in job["steps"] if "run" in step][-1] == ".ci/run"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "secrets" not in text.replace("No secrets", "")
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert PROJECT["requires-python"].startswith(">=3.11")
