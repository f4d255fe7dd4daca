"""Writing in the background, and what happens when it fails."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gipo_vla.checkpoint import folder as folders
from gipo_vla.checkpoint.writer import CheckpointWriter, Content


def content(text: str) -> Content:
    return Content({"run.json": lambda path: _write(path, text)}, len(text))


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Lets a write go on; opened at the end in any case."""
    event = threading.Event()
    yield event
    event.set()


def test_a_checkpoint_appears_between_updates_once_it_is_written(
    tmp_path: Path, gate: threading.Event, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(path: Path) -> None:
        gate.wait(10)
        path.write_text("slow")

    writer = CheckpointWriter(tmp_path, keep=2)
    writer.poll()
    writer.begin(1, 2, Content({"run.json": slow}, 4))
    writer.poll()
    assert writer.busy and writer.newest is None and folders.names(tmp_path) == []
    gate.set()
    writer.wait()
    assert not writer.busy and writer.newest == "000001-0000002" and not writer.failed
    assert folders.newest_valid(tmp_path)[0].name == writer.newest
    assert "checkpoint 000001-0000002: 0.0 MB in" in capsys.readouterr().err


def test_the_next_waits_for_the_one_before(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=2)
    for iteration in range(1, 6):
        writer.begin(iteration, iteration, content(str(iteration)), background=iteration % 2 == 0)
    writer.wait()
    assert folders.names(tmp_path) == ["000005-0000005", "000004-0000004"]
    assert not list(tmp_path.glob(".*"))


def test_a_failure_leaves_the_last_good_one_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    writer = CheckpointWriter(tmp_path, keep=2)
    writer.begin(1, 1, content("good"))
    for iteration in (2, 3):
        writer.begin(iteration, iteration, Content({"a": content("x").files["run.json"], "b": full}, 8))
        writer.wait()
        assert writer.failed and writer.newest == "000001-0000001"
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.count("warning: no checkpoint could be written (rank 0: [Errno 28] No space left") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"000001-0000001", "latest"}
    writer.begin(4, 4, content("good again"))
    writer.wait()
    assert not writer.failed and writer.newest == "000004-0000004"


def test_a_folder_that_cannot_be_made_is_a_failed_attempt(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    writer = CheckpointWriter(tmp_path / "taken", keep=2)
    writer.begin(1, 1, content("x"))
    assert writer.failed and not writer.busy


def test_what_is_no_failure_of_the_disk_is_raised(tmp_path: Path) -> None:
    def wrong(path: Path) -> None:
        raise ZeroDivisionError("a mistake in the program")

    writer = CheckpointWriter(tmp_path, keep=2)
    writer.begin(1, 1, Content({"run.json": wrong}, 0))
    with pytest.raises(ZeroDivisionError):
        writer.wait()
    assert not list(tmp_path.iterdir())
