"""What somebody who knows what the files are may do to a folder that another will read, and what may come of
it: a command works, or ends with one line within ten seconds. Checksums in the manifests are made to fit.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import strategies as st
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from gipo_envs.errors import UserError

SECRET = "a-secret-of-this-machine-5f2c9"
SECONDS = 10.0


class TooSlowError(BaseException):
    """A command was not done in time."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupt what computes for longer, or waits for six times as long (machines that test are busy)."""

    def interrupt(*_: object) -> None:
        raise TooSlowError

    before = [signal.signal(one, interrupt) for one in (signal.SIGALRM, signal.SIGPROF)]
    left, _ = signal.setitimer(signal.ITIMER_REAL, 6 * seconds)  # of the test's own limit
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for one, handler in zip((signal.SIGALRM, signal.SIGPROF), before):
            signal.signal(one, handler)
        signal.setitimer(signal.ITIMER_REAL, left)


def outcome(command: Callable[[], object]) -> str | None:
    """The one line that a command ends with; None: it works. Anything else that it raises is an error."""
    try:
        with at_most(SECONDS):
            status = command()
    except UserError as error:
        assert str(error)
        return str(error)
    assert not isinstance(status, int) or status == 0, f"exit status {status}"
    return None


def seal(folder: Path) -> None:
    """Make the checksums of every manifest fit what is there."""
    for manifest in folder.rglob("manifest.json"):
        if manifest.is_symlink() or not manifest.is_file():
            continue
        with_facts = {}
        for path in sorted(manifest.parent.rglob("*")):
            if path.is_symlink() or not path.is_file() or path == manifest:
                continue
            size = path.stat().st_size
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if size < 2**24 else "0" * 64
            with_facts[path.relative_to(manifest.parent).as_posix()] = {"sha256": digest, "bytes": size}
        manifest.write_text(json.dumps(with_facts))


def _bytes(draw: Any, path: Path) -> None:
    """Cut short, flipped, lengthened, emptied, or something else altogether."""
    data = path.read_bytes()
    kind = draw(st.sampled_from(["cut", "flip", "more", "empty", "utf-16", "zeros", "deep", "sparse"]))
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    if kind == "sparse":
        os.truncate(path, 2**40)
        return
    changed = {
        "cut": data[:at],
        "flip": data[:at] + bytes([data[at] ^ 0xFF] if data else [1]) + data[at + 1 :],
        "more": data + b"\x93more",
        "empty": b"",
        "utf-16": '{"a": 1}'.encode("utf-16"),
        "zeros": bytes(5000),
        "deep": b'{"a": ' + b"[" * 50_000,
    }
    path.write_bytes(changed[kind])


def _kind(draw: Any, path: Path, folder: Path, outside: Path) -> None:
    """Another kind of file in its place, or its folder elsewhere."""
    kind = draw(st.sampled_from(["link", "pipe", "folder", "device", "gone", "parent", "loop"]))
    elsewhere = outside / path.name
    if kind == "parent" and path.parent != folder:
        shutil.rmtree(outside / path.parent.name, ignore_errors=True)
        shutil.move(path.parent, outside / path.parent.name)
        path.parent.symlink_to(outside / path.parent.name)
        return
    if kind == "link":
        shutil.copy(path, elsewhere)
    path.unlink()
    if kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path.name)


BESIDE = (
    *("config.yaml", "metrics.jsonl", "finished.json", "manifest.json", "sweep.json", "runs-01.jsonl.xz"),
    *("latest", ".latest", ".lock", ".sweep.lock", ".writable", "wandb", "checkpoints", "report", "graphs"),
    *(".partial-000009-0000018", ".removed-000001-0000002", "damaged-000009-0000018", "000009-0000018"),
    *(".x.tmp", ".x.99999999999999999999.tmp", "adapter_config.json", "dataset_statistics.json"),
)
"""Names that mean something to a command."""


def _beside(draw: Any, path: Path, outside: Path) -> None:
    """Something more in a file's folder, or in another one's place."""
    place = path.with_name(draw(st.sampled_from(BESIDE)))
    kind = draw(st.sampled_from(["file", "folder", "full folder", "pipe", "link"]))
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    if kind == "file":
        place.write_text("{}")
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "link":
        (outside / "mine").write_text("mine")
        place.symlink_to(outside / "mine")
    else:
        place.mkdir()
        if kind == "full folder":
            (place / "metrics.jsonl").write_text("[]")


NASTY: list[Any] = [
    *(
        None,
        True,
        "",
        "text",
        [],
        {},
        [[]],
        {"a": 1},
        -1,
        0,
        1.5,
        2**31,
        2**63,
        2**100,
        10**30,
        1e308,
        -1e308,
    ),
    *(float("nan"), float("inf"), "${oc.env:STRANGERS_SECRET}", "${seed}", "$\\frac{$", "[/bold]", "\x1b[2J"),
    *(
        "../../outside",
        "/etc/passwd",
        "x" * 100_000,
        "\ud800",
        [0] * 1000,
        ["a", {"b": None}],
        "1e999",
        "a\nb",
    ),
]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Everything within a nested value, by the keys that lead there; of a list the first and the last."""
    found = [path]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _places(inner, (*path, key))
    elif isinstance(value, list) and value:
        for index in {0, len(value) - 1}:
            found += _places(value[index], (*path, index))
    return found


def _changed(draw: Any, value: Any) -> Any:
    """Something else somewhere in a nested value, or a key gone."""
    *where, last = (None, *draw(st.sampled_from(_places(value))))
    new, removed = draw(st.sampled_from(NASTY)), draw(st.integers(0, 5)) == 0
    holder = {None: value}
    inner: Any = holder
    for key in where:
        inner = inner[key]
    if removed and last is not None:
        del inner[last]
    else:
        inner[last] = new
    return holder[None]


def _value(draw: Any, path: Path) -> None:
    """Another value somewhere in a text file, or a key gone."""
    text = path.read_text()
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    if not lines or path.suffix not in (".json", ".jsonl", ".yaml"):
        return _bytes(draw, path)
    number = draw(st.integers(0, len(lines) - 1))
    value = yaml.safe_load(lines[number]) if path.suffix == ".yaml" else json.loads(lines[number])
    value = _changed(draw, value)
    if path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(value, allow_unicode=True), errors="surrogatepass")
        return None
    lines[number] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n")
    return None


def _packed(draw: Any, path: Path) -> None:
    """An archive of runs with something else in one of them, or packed in another way."""
    lines = lzma.decompress(path.read_bytes()).splitlines()
    kind = draw(st.sampled_from(["value", "value", "value", "twice", "text", "bomb", "alone", "dictionary"]))
    options: dict[str, Any] = {}
    if kind == "value":
        number = draw(st.integers(0, len(lines) - 1))
        lines[number] = json.dumps(_changed(draw, json.loads(lines[number]))).encode()
    elif kind == "twice":
        lines += lines
    elif kind == "text":
        lines.append(b"[" * 50_000)
    elif kind == "bomb":
        lines = [b" " * (2**28 + 1)]
    elif kind == "alone":
        options = {"format": lzma.FORMAT_ALONE}
    else:
        filters = {"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**27}
        options = {"filters": [filters]}
    path.write_bytes(lzma.compress(b"\n".join(lines) + b"\n", **(options or {"preset": 0})))


def _numbers(draw: Any, path: Path) -> None:
    """Other tensors or arrays: renamed, of another shape or type, of values that no run has."""
    kind = draw(st.sampled_from(["rename", "shape", "type", "nan", "large", "negative", "gone"]))
    if path.suffix == ".npy":
        array = np.load(path)
        changed = {
            "shape": np.concatenate([array, array]),
            "type": array.astype(object),
            "nan": np.full_like(array, np.nan) if array.dtype.kind == "f" else array[:0],
            "large": np.full_like(array, np.iinfo(array.dtype).max if array.dtype.kind in "iu" else 1),
            "negative": np.full_like(array, -5 if array.dtype.kind in "if" else 1),
        }
        np.save(path, changed.get(kind, array[..., None]), allow_pickle=True)
        return
    tensors = load_file(path)
    if not tensors:
        return
    name = draw(st.sampled_from(sorted(tensors)))
    tensor = tensors.pop(name)
    if kind == "rename":
        tensors[f"{name}/../x"] = tensor
    elif kind == "shape":
        tensors[name] = tensor.flatten()[:1].clone()
    elif kind == "type":
        tensors[name] = tensor.to(torch.int64 if tensor.is_floating_point() else torch.float32)
    elif kind == "nan":
        tensors[name] = torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor[:0]
    elif kind in ("large", "negative"):
        fills = tensor.dtype != torch.bool
        value = (1e30 if tensor.is_floating_point() else 120) if kind == "large" else -3
        tensors[name] = torch.full_like(tensor, value) if fills and tensor.dtype != torch.uint8 else ~tensor
    save_file(tensors, path)


def attack(draw: Any, folder: Path, name: str, outside: Path) -> None:
    """Change one file of a folder as somebody might who knows what it is.

    Args:
        draw: of hypothesis.
        name: of the file, in the folder.
        outside: a folder of the user's, to which a link may lead.
    """
    path = folder / name
    kinds = ["bytes", "kind", "beside"]
    if path.suffix in (".json", ".jsonl", ".yaml"):
        kinds += ["value"] * 4
    if path.suffix in (".npy", ".safetensors"):
        kinds += ["numbers"] * 4
    if path.suffix == ".xz":
        kinds += ["packed"] * 6
    kind = draw(st.sampled_from(kinds))
    if kind == "bytes":
        _bytes(draw, path)
    elif kind == "kind":
        _kind(draw, path, folder, outside)
    elif kind == "beside":
        _beside(draw, path, outside)
    elif kind == "value":
        _value(draw, path)
    elif kind == "packed":
        _packed(draw, path)
    else:
        _numbers(draw, path)
    if path.name != "manifest.json":
        seal(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fast_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures without the search for a good layout, which is most of a report's time."""
    savefig = Figure.savefig

    def plain(figure: Figure, *arguments: Any, **options: Any) -> None:
        figure.set_layout_engine("none")
        savefig(figure, *arguments, **{**options, "dpi": 20})

    monkeypatch.setattr(Figure, "savefig", plain)
