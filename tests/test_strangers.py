"""Run folders from strangers: whatever is changed in one, a command works, or ends with one line.

Checksums in the manifest are made to fit, as an attacker would. Nothing outside the folder is read into what
a command writes, nothing outside is written, and nothing takes longer than ten seconds to be refused.
"""

from __future__ import annotations

import hashlib
import json
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
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from gipo_envs.errors import UserError
from gipo_vla import evaluate, report, train
from tests.conftest import TINY

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


COMMANDS: dict[str, Callable[[Path], object]] = {
    "report": lambda run: report.main([str(run)]),
    "evaluate": lambda run: evaluate.main([f"checkpoint={run}", "eval.episodes_per_task=2"]),
    "resume": lambda run: train.main(
        [f"resume={run}", "iterations=2", "eval.episodes_per_task=2", "telemetry.report=false"]
    ),
}


def outcome(command: str, run: Path) -> str | None:
    """The one line that a command ends with; None: it works. Anything else that it raises is an error."""
    try:
        with at_most(SECONDS):
            COMMANDS[command](run)
    except UserError as error:
        assert str(error)
        return str(error)
    return None


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one iteration, with everything that a folder can hold."""
    run = tmp_path_factory.mktemp("strangers") / "run"
    overrides = [text for text in TINY if not text.startswith(("iterations=", "telemetry.report"))]
    train.main([*overrides, "credit=graph", "rollout.group_size=4", "iterations=1", f"run_dir={run}"])
    graph = {"axes": ["hand x", "hand z"], "iteration": 1, "episodes": 4, "start": 0}
    graph |= {"nodes": [[0.0, 0.1, 2], [0.1, 0.2, 1]], "edges": [[0, 1, 3], [1, -1, 2]]}
    (run / "graphs").mkdir(exist_ok=True)
    (run / "graphs/000001.json").write_text(json.dumps(graph))
    return run


def _files(run: Path) -> list[str]:
    """What a command may look at in the run folder, in a fixed order."""
    found = [path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()]
    return sorted(name for name in found if not name.startswith("report/") and name != "report.html")


def _seal(run: Path) -> None:
    """Make the checksums of the manifest fit what is there."""
    for manifest in run.glob("checkpoints/0*/manifest.json"):
        with_facts = {}
        for path in sorted(manifest.parent.rglob("*")):
            if path.is_symlink() or not path.is_file() or path == manifest:
                continue
            size = path.stat().st_size
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if size < 2**24 else "0" * 64
            with_facts[path.relative_to(manifest.parent).as_posix()] = {"sha256": digest, "bytes": size}
        manifest.write_text(json.dumps(with_facts))


# ------------------------------------------------------------------------------------ what can be done to it


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


def _kind(draw: Any, path: Path, outside: Path) -> None:
    """Another kind of file in its place, or its folder elsewhere."""
    kind = draw(st.sampled_from(["link", "pipe", "folder", "device", "gone", "parent", "loop"]))
    elsewhere = outside / path.name
    if kind == "parent" and not (path.parent / "metrics.jsonl").exists():
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


def _value(draw: Any, path: Path) -> None:
    """Another value somewhere in a text file, or a key gone."""
    text = path.read_text()
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    if not lines or path.suffix not in (".json", ".jsonl", ".yaml"):
        return _bytes(draw, path)
    number = draw(st.integers(0, len(lines) - 1))
    value = yaml.safe_load(lines[number]) if path.suffix == ".yaml" else json.loads(lines[number])
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
    if path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(holder[None], allow_unicode=True), errors="surrogatepass")
        return None
    lines[number] = json.dumps(holder[None])
    path.write_text("\n".join(lines) + "\n")
    return None


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


def _attack(draw: Any, run: Path, outside: Path) -> str:
    """Change one file of the run as somebody might who knows what it is; returns which."""
    names = _files(run)
    name = draw(st.sampled_from(names))
    path = run / name
    kinds = ["bytes", "kind"]
    if path.suffix in (".json", ".jsonl", ".yaml"):
        kinds += ["value"] * 4
    if path.suffix in (".npy", ".safetensors"):
        kinds += ["numbers"] * 4
    kind = draw(st.sampled_from(kinds))
    if kind == "bytes":
        _bytes(draw, path)
    elif kind == "kind":
        _kind(draw, path, outside)
    elif kind == "value":
        _value(draw, path)
    else:
        _numbers(draw, path)
    if path.name != "manifest.json":
        _seal(run)
    return name


def _of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check(draw: Any, base: Path, tmp: Path) -> None:
    """One attack, and one command that meets it."""
    shutil.rmtree(tmp, ignore_errors=True)
    run, outside = tmp / "run", tmp / "outside"
    shutil.copytree(base, run)
    outside.mkdir()
    name = _attack(draw, run, outside)
    before = _of(outside)
    command = draw(st.sampled_from(_readers(name)))
    outcome(command, run)
    assert _of(outside) == before, "something was written outside"
    if not before:  # nothing that is a link itself
        leaking = [path for path in run.rglob("*") if path.is_file() and path.stat().st_size < 2**28]
        assert not any(SECRET.encode() in path.read_bytes() for path in leaking)


def _readers(name: str) -> list[str]:
    if name.startswith("checkpoints/"):
        return ["evaluate", "resume", "resume"]
    if name in ("config.yaml", "metrics.jsonl", "evaluations.jsonl"):
        return ["report", "resume"]
    return ["report"] if name.startswith(("graphs/", "evaluation")) else ["resume", "report"]


def _fast_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures without the search for a good layout, which is most of a report's time."""
    savefig = Figure.savefig

    def plain(figure: Figure, *arguments: Any, **options: Any) -> None:
        figure.set_layout_engine("none")
        savefig(figure, *arguments, **{**options, "dpi": 20})

    monkeypatch.setattr(Figure, "savefig", plain)


def _fuzz(count: int, base: Path, tmp: Path) -> None:
    @settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def attacks(data: st.DataObject) -> None:
        check(data.draw, base, tmp)

    attacks()


# ------------------------------------------------------------------------------------------- named attacks


def _link(path: Path, outside: Path) -> None:
    """A link in a file's or folder's place, to something of the user's with the same content."""
    target = outside / path.name
    if path.exists():
        shutil.move(path, target)
    else:
        target.write_text("mine")
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        (".lock", "resume"),
        ("config.yaml", "resume"),
        ("config.yaml", "report"),
        ("evaluation.json", "report"),
        ("report", "report"),
        ("report/curves.csv", "report"),
        ("report.html", "report"),
        ("videos", "report"),
        ("graphs", "report"),
        ("checkpoints", "evaluate"),
        ("checkpoints/000001-0000002", "evaluate"),
        ("checkpoints/000001-0000002/manifest.json", "evaluate"),
        ("checkpoints/000001-0000002/config.yaml", "evaluate"),
        ("checkpoints/000001-0000002/rank-00000", "resume"),
        ("checkpoints/.latest", "resume"),
        (".metrics.jsonl.tmp", "resume"),
    ],
)
def test_links_are_neither_read_nor_written_through(
    base: Path, tmp_path: Path, name: str, command: str
) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(base, run)
    outside.mkdir()
    _link(run / name, outside)
    before = _of(outside)
    assert "is a link" in (outcome(command, run) or "")
    assert _of(outside) == before


def test_the_folder_that_the_user_names_may_be_a_link(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "run")
    (tmp_path / "named").symlink_to(tmp_path / "run")
    assert outcome("evaluate", tmp_path / "named") is None


def test_the_environment_stays_out_of_a_run(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRANGERS_SECRET", SECRET)
    run = tmp_path / "run"
    shutil.copytree(base, run)
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["experiment"] = values["telemetry"]["wandb_project"] = "${oc.env:STRANGERS_SECRET}"
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    assert outcome("resume", run) is None
    assert "${oc.env:STRANGERS_SECRET}" in (run / "config.yaml").read_text()
    assert not any(SECRET.encode() in content for content in _of(run).values())


def _set(file: str, *where: Any, to: Any) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        path = run / file
        read, write = (yaml.safe_load, yaml.safe_dump) if path.suffix == ".yaml" else (json.loads, json.dumps)
        values = read(path.read_text())
        *keys, last = where
        inner = values
        for key in keys:
            inner = inner[key]
        inner[last] = to
        path.write_text(write(values))

    return change


def _all(*changes: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        for one in changes:
            one(run)

    return change


def _write(file: str, text: str) -> Callable[[Path], None]:
    return lambda run: (run / file).write_text(text) and None


SETTINGS = "checkpoints/000001-0000002/config.yaml"
STATE = "checkpoints/000001-0000002/run.json"
RANK = "checkpoints/000001-0000002/rank-00000/rank.json"
ROW = {"iteration": 1, "env_steps": 160}


@pytest.mark.parametrize(
    ("command", "change", "told"),
    [
        ("resume", _write("checkpoints/000001-0000002/manifest.json", "{}"), "names no file"),
        (
            "resume",
            _write("checkpoints/000001-0000002/manifest.json", '{"../../x": {"sha256": "", "bytes": 1}}'),
            "no file of the checkpoint",
        ),
        ("resume", _set("config.yaml", "policy", "hidden", to=[10**12]), "at most 32 widths"),
        (
            "evaluate",
            _set(SETTINGS, "policy", "hidden", to=[10**12]),
            "widths",
        ),
        ("resume", _set("config.yaml", "learner", "threads", to=10**6), "threads"),
        ("resume", _set("config.yaml", "rollout", "workers", to=10**9), "rollout.workers"),
        (
            "resume",
            _all(
                _set("config.yaml", "replay", "capacity", to=10**15),
                _set("config.yaml", "replay", "memory_limit_gb", to=1e12),
            ),
            "replay.capacity",
        ),
        ("resume", _set("config.yaml", "rollout", "env_steps", to=10**15), "rollout.env_steps"),
        ("resume", _set("config.yaml", "learner", "updates", to=10**15), "learner.updates"),
        ("resume", _set("config.yaml", "env", "step_limit", to=10**15), "env.step_limit"),
        ("resume", _set("finished.json", "iterations", to="many"), "finished.json"),
        ("resume", _set(STATE, "iteration", to=-1), "iteration"),
        ("resume", _set(STATE, "tracker_id", to="../../outside"), "tracker_id"),
        ("resume", _set(STATE, "tasks", "episodes", to=[1, 2, 3]), "tasks"),
        ("resume", _set(RANK, "plans", 0, "initial_state", to=2**50), "episodes are none of"),
        ("resume", _set(RANK, "credit", "sums", to=""), "cannot be understood"),
        ("report", _write("metrics.jsonl", "[1]\n"), "no iteration"),
        ("report", _write("metrics.jsonl", json.dumps(ROW | {"loss": [1]}) + "\n"), "line 1"),
        ("report", _write("metrics.jsonl", json.dumps(ROW | {"loss": "1.0"}) + "\n"), "line 1"),
        ("report", _write("metrics.jsonl", json.dumps(ROW | {"loss": 10**400}) + "\n"), "empty"),
        ("report", _write("metrics.jsonl", json.dumps(ROW | {"loss": 1e300}) + "\n"), "line 1"),
        ("report", _write("metrics.jsonl", f"{json.dumps(ROW)}\n{json.dumps(ROW)}\n"), "order"),
        ("report", _set("evaluation.json", "success_once", to="all"), "success_once"),
        ("report", _set("evaluation.json", "tasks", to=[]), "tasks"),
        ("report", _set("config.yaml", "env", to="none"), "env"),
        ("report", _write("sweep.json", '{"jobs": [{"name": 3}]}'), "a job without a name"),
        ("report", lambda run: os.mkfifo(run / "sweep.json"), "is a pipe"),
    ],
)
def test_what_no_run_writes_ends_with_one_line(
    base: Path, tmp_path: Path, command: str, change: Callable[[Path], object], told: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(base, run)
    change(run)
    if not told.endswith(("names no file", "no file of the checkpoint")):
        _seal(run)
    assert told in (outcome(command, run) or "it works")


def test_names_are_drawn_and_printed_as_they_are(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither as mathematics nor as markup; a graph without labels is left out."""
    _fast_figures(monkeypatch)
    for number, name in enumerate(("$\\frac{$", "[/bold]")):
        run = tmp_path / "runs" / f"{name}{number}"
        shutil.copytree(base, run)
        _set("config.yaml", "experiment", to=f"{name} {number}")(run)
        _set("config.yaml", "objective", "sigma", to=0.5 + number)(run)
    _set(f"{name}{number}/graphs/000001.json", "axes", to=[])(tmp_path / "runs")
    assert outcome("report", tmp_path / "runs") is None


@pytest.mark.medium
def test_every_attack_works_or_ends_with_one_line(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRANGERS_SECRET", SECRET)
    _fast_figures(monkeypatch)
    _fuzz(15, base, tmp_path / "attack")


@pytest.mark.slow
def test_many_attacks(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRANGERS_SECRET", SECRET)
    _fast_figures(monkeypatch)
    _fuzz(int(os.environ.get("GIPO_ATTACKS", 150)), base, tmp_path / "attack")
