"""What pages name exists: files, other pages and their sections, settings, metrics."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gipo_vla.reporting.archive import read_folder
from gipo_vla.settings import composition
from tests.docs.pages import FENCE, ROOT, name, pages

LINK = re.compile(r"\]\(([^)#\s]*)(#[\w-]+)?\)")
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"^(?:\./)?((?:gipo_vla|envs|configs|scripts|tests|docs|docker|examples)/[\w./-]*)$")
MODULE = re.compile(r"^(gipo_(?:vla|envs)(?:\.\w+)+)$")
SETTING = re.compile(r"^((\w+)(?:\.\w+)+)(?:=.*)?$")
METRIC = re.compile(r"^((?:staleness|gradient_norm|value|advantage|loss|policy)/\w+)$")
CHANGES = ROOT / "CHANGELOG.md"
EVERY = [*pages(), CHANGES]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def codes(page: Path) -> list[str]:
    return CODE.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """Names by which the page's headings can be linked to."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", EVERY, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, section in LINK.findall(prose(page)):
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name(page)} links {target}"
        assert not section or section in anchors(path), f"{name(page)} links {target}{section}"


@pytest.mark.parametrize("page", pages(), ids=name)
def test_files_and_modules_named_exist(page: Path) -> None:
    for code in codes(page):
        if found := PATH.match(code):
            path = re.sub(r"NAME\b.*|<.*", "", found[1])  # as in docs/results/data/NAME
            assert (ROOT / path).exists(), f"{name(page)} names {path}"
        elif (found := MODULE.match(code)) and not code.endswith((".safetensors", ".json")):
            assert _importable(found[1]), f"{name(page)} names {found[1]}"


def _importable(dotted: str) -> bool:
    """A module, or what a module has; told from files, because some modules are commands."""
    parts = dotted.split(".")
    folder = ROOT / "envs" if parts[0] == "gipo_envs" else ROOT
    for length in range(len(parts), 0, -1):
        path = folder.joinpath(*parts[:length])
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if source.is_file():
            return all(re.search(rf"\b{part}\b", source.read_text()) for part in parts[length:])
    return False


def settings_known() -> set[str]:
    """Every key of the table of settings, and the sections above it."""
    keys = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "settings.md").read_text(), re.MULTILINE)
    return {".".join(key.split(".")[:depth]) for key in keys for depth in range(1, key.count(".") + 2)}


@pytest.mark.parametrize("page", pages(), ids=name)
def test_settings_named_exist(page: Path) -> None:
    known = settings_known()
    sections = {key.partition(".")[0] for key in known if "." in key}
    for code in codes(page):
        for word in code.split():
            found = SETTING.match(word)
            if found and found[2] in sections and not word.endswith((".py", ".yaml", ".json", ".jsonl")):
                assert found[1] in known, f"{name(page)} names the setting {found[1]}"


def test_metrics_of_the_page_on_troubles_are_those_of_a_run() -> None:
    (run, *_) = read_folder(ROOT / "docs" / "results" / "data" / "paper_metaworld_small")
    page = ROOT / "docs" / "troubleshooting.md"
    named = {code for code in codes(page) if METRIC.match(code)}
    assert len(named) > 10
    assert named - set(run["metrics"]) == set()


def test_experiments_named_exist() -> None:
    examples = "".join(path.read_text() for path in (ROOT / "examples").glob("*.py"))
    known = {*composition.groups()["experiment"], *re.findall(r"\bexperiment=(\w+)", examples)}
    for page in pages():
        for one in re.findall(r"\bexperiment=(\w+)", page.read_text()):
            assert one in known, f"{name(page)} names experiment={one}"


def test_index_lists_every_page() -> None:
    linked = {target for target, _ in LINK.findall((ROOT / "docs" / "README.md").read_text())}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= linked


def test_figure_of_the_architecture_is_what_its_script_draws(tmp_path: Path) -> None:
    drawn = tmp_path / "architecture.svg"
    subprocess.run([sys.executable, ROOT / "scripts" / "draw_architecture.py", drawn], check=True)
    assert drawn.read_bytes() == (ROOT / "docs" / "architecture.svg").read_bytes()


def test_tree_of_the_architecture_names_what_is_there() -> None:
    (tree,) = re.findall(r"```text\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    folder = ROOT
    for line in tree.splitlines():
        if not line.strip() or line.startswith(" " * 5):
            continue
        names = re.match(r"\s*((?:[\w.]+(?:/[\w.]+)*(?:\.py|/)\s?)+)", line)
        assert names is not None, line
        for one in names[1].split():
            base = folder if line.startswith("  ") else ROOT
            assert (base / one).exists(), one
        if not line.startswith(" "):
            folder = ROOT / names[1].split()[0]
    packages = {path.name for path in (ROOT / "gipo_vla").iterdir() if (path / "__init__.py").exists()}
    assert {one for one in packages if f"  {one}/" not in tree} == set()


@pytest.mark.parametrize("page", pages(), ids=name)
def test_the_field_s_words(page: Path) -> None:
    """Words of our own that the field has a name for, and which have slipped in before."""
    text = " ".join(prose(page).split())
    for word in ("goes on with", "go on with", "praise", "so-manieth", "day of acting"):
        assert word not in text, f"{name(page)}: {word}"
