"""Options of commands: parsed and checked from one dataclass, with their part of --help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from gipo_envs.errors import UserError
from gipo_vla import options
from gipo_vla.settings.schema import TrainingSettings


@dataclass(frozen=True)
class Own:
    """Options of a command that does not exist."""

    out: Path | None = None
    """Folder to
    write to."""
    repeats: Annotated[int, Field(gt=0)] = 5
    """How often to measure."""
    backend: Literal["egl", "osmesa"] = "egl"
    """What draws."""
    quiet: bool = False
    """Print less."""


def test_options_are_taken_out_and_typed() -> None:
    parsed = options.parse(["repeats=3", "seed=1", "out=/a b/c=d", "quiet=true"], Own, "", TrainingSettings)
    assert parsed == (Own(out=Path("/a b/c=d"), repeats=3, quiet=True), ["seed=1"])


@pytest.mark.parametrize("text", ["out=", "out=null"])
def test_nothing_stands_for_none(text: str) -> None:
    assert options.parse([text], Own, "") == (Own(), [])


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("repeats=x", "repeats is 'x'"),
        ("repeats=0", "repeats is '0'"),
        ("backend=glfw", "'egl' or 'osmesa'"),
        ("repaets=3", "unknown setting 'repaets'; nearest: repeats"),
        ("itterations=3", "unknown setting 'itterations'; nearest: iterations"),
        ("--repeats", "unknown option --repeats"),
    ],
)
def test_mistakes_are_named_beside_the_settings_of_a_run(argument: str, named: str) -> None:
    with pytest.raises(UserError) as caught:
        options.parse([argument], Own, "", TrainingSettings)
    assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("argument", ["repaets=3", "--repaets"])
def test_mistakes_are_named_where_there_is_no_run(argument: str) -> None:
    with pytest.raises(UserError, match=r"unknown option .*repaets.*; nearest: repeats"):
        options.parse([argument], Own, "")


def test_a_file_may_have_a_name_with_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sigma=1").mkdir()
    assert options.parse(["sigma=1", "elsewhere"], Own, "") == (Own(), ["sigma=1", "elsewhere"])


@pytest.mark.parametrize("runs", [(), (TrainingSettings,)])
def test_help_says_what_each_option_means(runs: tuple[type, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert options.parse(["--help"], Own, "What the command does.", *runs) is None
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("What the command does.")
    for words in (
        "out=PATH Folder to write to.",
        "repeats=N How often to measure. Default: 5.",
        "backend=egl|osmesa What draws. Default: egl.",
        "quiet=true|false Print less. Default: false.",
    ):
        assert words in shown
    assert ("Config groups" in shown) == bool(runs)


def test_help_of_one_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert options.parse(["--help", "repeats"], Own, "What the command does.", TrainingSettings) is None
    assert capsys.readouterr().out.split() == [
        "repeats=N",
        "How",
        "often",
        "to",
        "measure.",
        "Default:",
        "5.",
    ]
