"""What the pages for people hold: their fenced blocks, and the commands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"(^|\s+)#.*$")
COMMAND = re.compile(
    r"^([A-Z_]+=\S+ )*"
    r"((\./)?scripts/|\.venv/bin/|(python|torchrun|sbatch|bash|docker|git|export|pre-commit) |for )"
)


@dataclass(frozen=True)
class Command:
    """A command as a page shows it, without its comment."""

    page: str
    text: str


def pages() -> list[Path]:
    """All pages for people, in a fixed order."""
    named = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    return [path for path in named if path.exists()] + sorted((ROOT / "docs").glob("**/*.md"))


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of every fenced block; a block of commands has no language."""
    for found in FENCE.finditer(page.read_text()):
        yield found["language"], found["text"]


def lines(page: Path) -> list[str]:
    """Lines of all blocks of commands, continued lines joined and comments cut."""
    texts = (text.replace("\\\n", " ") for language, text in blocks(page) if not language)
    bare = (COMMENT.sub("", line).strip() for text in texts for line in text.splitlines())
    return [" ".join(line.split()) for line in bare if line]


def commands() -> list[Command]:
    """Every command of every page, the same command once, under the first page that shows it."""
    found: dict[str, Command] = {}
    for page in pages():
        for line in lines(page):
            found.setdefault(same(line), Command(name(page), line))
    return list(found.values())


def same(line: str) -> str:
    """The command without the ways of writing that change nothing."""
    return re.sub(r"^\.venv/bin/", "", line)
