"""Names, order and life of checkpoint folders."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gipo_envs.errors import UserError
from gipo_vla.checkpoint import folder as folders


def make(checkpoints: Path, iteration: int, updates: int | None = None) -> str:
    """A small complete checkpoint; returns its name."""
    name = folders.new_name(checkpoints, iteration, 2 * iteration if updates is None else updates)
    partial = folders.prepare(checkpoints, name)
    (partial / "rank-00000").mkdir()
    manifest = {}
    for file in ("run.json", "rank-00000/rank.json"):
        (partial / file).write_text(json.dumps({"iteration": iteration}))
        manifest[file] = folders.record(partial / file)
    folders.seal(checkpoints, name, manifest)
    return name


def test_a_complete_checkpoint_bears_its_name_and_is_the_latest(tmp_path: Path) -> None:
    name = make(tmp_path, 12, 1440)
    assert name == "000012-0001440"
    assert (tmp_path / "latest").read_text().strip() == name
    assert folders.names(tmp_path) == [name] and folders.newest_valid(tmp_path) == (tmp_path / name, [])
    assert {path.name for path in tmp_path.iterdir()} == {name, "latest"}


def test_order_is_by_number_not_by_letter(tmp_path: Path) -> None:
    made = [make(tmp_path, iteration) for iteration in (9, 10, 999_999, 1_000_000)]
    assert folders.names(tmp_path) == made[::-1]


def test_the_same_state_saved_again_gets_a_name_of_its_own(tmp_path: Path) -> None:
    made = [make(tmp_path, 3) for _ in range(11)]
    assert made[:3] == ["000003-0000006", "000003-0000006-2", "000003-0000006-3"]
    assert folders.names(tmp_path) == made[::-1]


def test_what_is_no_checkpoint_is_no_name(tmp_path: Path) -> None:
    assert folders.names(tmp_path / "none") == []
    for name in (".partial-000009-0000018", ".removed-000001-0000002", "damaged-000008-0000016", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "000007-0000014").write_text("a file")
    name = make(tmp_path, 1)
    assert folders.names(tmp_path) == [name]
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {name, "mine", "damaged-000008-0000016"}, "leftovers of a killed process are gone"


@pytest.mark.parametrize(
    ("keep", "milestone", "expected"),
    [
        (2, None, [11, 12]),
        (1, None, [12]),
        (2, 4, [4, 8, 11, 12]),
        (1, 5, [5, 10, 12]),
        (99, 4, list(range(1, 13))),
    ],
)
def test_the_newest_and_every_so_manieth_are_kept(
    tmp_path: Path, keep: int, milestone: int | None, expected: list[int]
) -> None:
    for iteration in range(1, 13):
        make(tmp_path, iteration)
        folders.prune(tmp_path, keep, milestone)
    assert [int(name.split("-")[0]) for name in reversed(folders.names(tmp_path))] == expected
    assert (tmp_path / "latest").read_text().strip() == folders.names(tmp_path)[0]


def test_of_one_iteration_the_milestone_is_the_checkpoint_at_its_end(tmp_path: Path) -> None:
    boundary = make(tmp_path, 4, 8)
    make(tmp_path, 4, 9)  # stopped within the fifth
    make(tmp_path, 5)
    folders.prune(tmp_path, 1, 4)
    assert folders.names(tmp_path) == ["000005-0000010", boundary]


def test_damaged_ones_are_named_and_passed_over(tmp_path: Path) -> None:
    made = [make(tmp_path, iteration) for iteration in (1, 2, 3, 4)]
    (tmp_path / made[3] / "manifest.json").unlink()
    (tmp_path / made[2] / "run.json").write_text("{}")
    chosen, problems = folders.newest_valid(tmp_path)
    assert chosen.name == made[1]
    assert [made[3] in problems[0], made[2] in problems[1]] == [True, True]
    folders.set_aside_newer(tmp_path, chosen.name)
    assert folders.names(tmp_path) == [made[1], made[0]]
    assert make(tmp_path, 3) == made[2], "its name is free again"
    folders.prune(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {made[2], made[1], "latest"}


def killed_in(work: Callable[[], object], event: str, within: str) -> None:
    """Do something in a process that dies at the first such event (``sys.addaudithook``) on such a file."""

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name == event and within in str(arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            sys.addaudithook(hook)
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it did not come to that"


@pytest.mark.parametrize(
    ("event", "within", "left"),
    [
        ("os.rename", ".latest", ".latest"),  # to latest: the newest has its name already
        ("os.rename", "000001-0000002", None),  # the oldest is about to be removed
        ("shutil.rmtree", ".removed-", ".removed-000001-0000002"),
    ],
)
def test_who_goes_on_completes_what_a_killed_process_left_undone(
    tmp_path: Path, event: str, within: str, left: str | None
) -> None:
    made = [make(tmp_path, 1), make(tmp_path, 2)]

    def save_the_last() -> None:
        make(tmp_path, 3)
        folders.prune(tmp_path, 2)

    killed_in(save_the_last, event, within)
    newest = "000003-0000006"
    before = {path.name for path in tmp_path.iterdir()}
    assert newest in before and before != {made[1], newest, "latest"}
    assert left is None or left in before
    folders.settle(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {made[1], newest, "latest"}
    assert (tmp_path / "latest").read_text().strip() == newest


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"run.json": 3}', '{"run.json": {"bytes": 1}}'])
def test_no_manifest_is_trusted(tmp_path: Path, content: str) -> None:
    name = make(tmp_path, 1)
    (tmp_path / name / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"no usable checkpoint.*manifest\.json is missing or unreadable"):
        folders.newest_valid(tmp_path)
