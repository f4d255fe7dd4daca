"""Files that may come from a stranger: what is read of them, and what is refused before it is read."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gipo_envs.errors import UserError
from gipo_vla import foreign


def link(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    elsewhere.write_text("{}")
    path.symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (link, "is a link"),
        (lambda path: path.symlink_to("/dev/zero"), "is a link"),
        (os.mkfifo, "is a pipe"),
        (Path.mkdir, "is a folder"),
        (lambda path: path.touch() or os.truncate(path, 2**40), "bytes, and such a file at most"),
        (lambda path: None, "is missing"),
        (lambda path: path.write_bytes(b"\xff\xfe{\0}\0"), "no UTF-8 text"),
        (lambda path: path.write_text("[" * 100_000), "nested too deeply"),
        (lambda path: path.write_text('{"a": ' * 60 + "1" + "}" * 60), "nested too deeply"),
        (lambda path: path.write_text(f'{{"a": {"1" * 5000}}}'), "cannot be read"),
        (lambda path: path.write_text(f'{{"a": {2**200}}}'), "a number has 201 bits"),
        (lambda path: path.write_text('{"a": "\\ud800"}'), "cannot be read"),
        (lambda path: path.write_text(json.dumps({"a": "x" * 10_000})), "a text has 10,000 characters"),
        (lambda path: path.write_text("[1]"), "expected a mapping"),
    ],
)
def test_a_json_file_is_read_only_if_it_is_a_small_plain_one(
    tmp_path: Path, make: Callable[[Path], object], told: str
) -> None:
    make(tmp_path / "values.json")
    with pytest.raises(UserError, match=told):
        foreign.read_json(tmp_path / "values.json")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
    for a, b in zip("abcdefghi", "bcdefghij")
)


@pytest.mark.parametrize(
    "text",
    [
        *(
            LAUGHS,
            "a: &a [*a]",
            "a: " + "[" * 10_000,
            "a: !!python/object/apply:os.getcwd []",
            "a: 2001-01-01",
        ),
        *("1: a", "a: !!binary aGk=", "a: 1:1" + ":1" * 5000, "a: [1", "\0", "just text", f"a: {10**20}"),
    ],
)
def test_settings_are_plain_yaml(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        foreign.read_yaml(tmp_path / "config.yaml")


def test_interpolations_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "secret")
    (tmp_path / "config.yaml").write_text("a: ${oc.env:A_SECRET}\nb: ${a}\n")
    assert foreign.read_yaml(tmp_path / "config.yaml") == {"a": "${oc.env:A_SECRET}", "b": "${a}"}


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}\n", b"1234"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}\n", b"1234"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999999)}\n"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", b"12345678"),
        npy("{'descr': '<f4', 'fortran_order': True, 'shape': (1,)}\n", b"1234"),
        npy("__import__('os').getcwd()\n", b"1234"),
        npy("(" * 5000, b"1234"),
    ],
)
def test_an_array_is_as_large_as_its_header_says(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "array.npy"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"array\.npy"):
        foreign.read_npy(path)


def test_arrays_are_read_as_they_were_written(tmp_path: Path) -> None:
    for array in (np.arange(6, dtype=np.int16).reshape(2, 3), np.zeros((0, 4), np.float32), np.array(2.5)):
        np.save(tmp_path / "array.npy", array)
        read = foreign.read_npy(tmp_path / "array.npy")
        np.testing.assert_array_equal(read, array)
        assert (read.dtype, read.shape) == (array.dtype, array.shape)


def test_damaged_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, path)
    whole = path.read_bytes()
    assert list(foreign.read_arrays(path)) == ["a"]
    huge = json.dumps({"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}).encode()
    for damaged in (
        b"",
        whole[:-1],
        whole + b"more",
        struct.pack("<Q", 2**60),
        struct.pack("<Q", len(huge)) + huge,
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"some\.safetensors cannot be read"):
            foreign.read_arrays(path)


def test_a_file_of_holes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    path.touch()
    os.truncate(path, 2**42)
    with pytest.raises(UserError, match="nearly all of them holes"):
        foreign.read_tensors(path)


def test_a_folder_holds_no_links_at_any_depth(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints/one/rank").mkdir(parents=True)
    (run / "wandb").mkdir()
    (run / "wandb/latest-run").symlink_to("run-1")  # the tracker's own
    foreign.check_folder(run)
    (tmp_path / "named").symlink_to(run)
    foreign.check_folder(tmp_path / "named")  # the user may call it what he likes
    (run / "checkpoints/one/rank/replay").symlink_to(tmp_path)
    with pytest.raises(UserError, match="rank/replay is a link"):
        foreign.check_folder(run)
    (run / "checkpoints/one/rank/replay").unlink()
    os.mkfifo(run / "checkpoints/latest")
    with pytest.raises(UserError, match="latest is a pipe"):
        foreign.check_folder(run)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / "file").symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        foreign.text_stream(tmp_path / "file")
    assert elsewhere.read_text() == "mine"
