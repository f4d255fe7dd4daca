"""Attacks on run folders by name: what each file may not bring a command to do.

Checksums in the manifest are made to fit, as an attacker would. Nothing outside the folder is read into what
a command writes, nothing outside is written, and nothing takes longer than ten seconds to be refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.strangers.attacks import SECRET, contents, fast_figures, outcome, seal
from tests.strangers.victims import CHECKPOINT, COMMANDS
from tests.test_foreign import LAUGHS, npy


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
    before = contents(outside)
    assert "is a link" in (outcome(partial(COMMANDS[command], run)) or "")
    assert contents(outside) == before


def test_the_folder_that_the_user_names_may_be_a_link(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "run")
    (tmp_path / "named").symlink_to(tmp_path / "run")
    assert outcome(partial(COMMANDS["evaluate"], tmp_path / "named")) is None


def test_the_environment_stays_out_of_a_run(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRANGERS_SECRET", SECRET)
    run = tmp_path / "run"
    shutil.copytree(base, run)
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["experiment"] = values["telemetry"]["wandb_project"] = "${oc.env:STRANGERS_SECRET}"
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    assert outcome(partial(COMMANDS["resume"], run)) is None
    assert "${oc.env:STRANGERS_SECRET}" in (run / "config.yaml").read_text()
    assert not any(SECRET.encode() in content for content in contents(run).values())


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


def _write(file: str, text: str | bytes) -> Callable[[Path], None]:
    data = text.encode() if isinstance(text, str) else text
    return lambda run: (run / file).write_bytes(data) and None


def _replaced(file: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else in a file's place."""

    def change(run: Path) -> None:
        (run / file).unlink()
        make(run / file)

    return change


def _terabyte(path: Path) -> None:
    """A file of holes."""
    path.touch()
    os.truncate(path, 2**40)


def _renamed_tensor(file: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        tensors = load_file(run / file)
        first = sorted(tensors)[0]
        save_file({f"{name}.x" if name == first else name: tensors[name] for name in tensors}, run / file)

    return change


def _file_of_the_user(run: Path) -> None:
    """The manifest names a file outside the folder, with its checksum."""
    (run.parent / "mine").write_text("mine")
    facts = {"sha256": hashlib.sha256(b"mine").hexdigest(), "bytes": 4}
    manifest = run / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"../../../mine": facts}))


def _oversized_tensor(run: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}
    text = json.dumps(header).encode()
    (run / POLICY).write_bytes(struct.pack("<Q", len(text)) + text)


SETTINGS = f"{CHECKPOINT}/config.yaml"
STATE = f"{CHECKPOINT}/run.json"
RANK = f"{CHECKPOINT}/rank-00000/rank.json"
POLICY = f"{CHECKPOINT}/policy.safetensors"
MANIFEST = f"{CHECKPOINT}/manifest.json"
ARRAY = f"{CHECKPOINT}/rank-00000/replay/start.npy"
HUGE = "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,)}\n"
PICKLED = "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n"
ROW = {"iteration": 1, "env_steps": 160}


@pytest.mark.parametrize(
    ("command", "change", "told"),
    [
        ("resume", _write(MANIFEST, "{}"), "names no file"),
        ("resume", _file_of_the_user, "no file of the checkpoint"),
        ("evaluate", _replaced(MANIFEST, _terabyte), "missing or unreadable"),
        ("evaluate", _replaced(MANIFEST, os.mkfifo), "is a pipe"),
        ("report", _replaced("config.yaml", os.mkfifo), "is a pipe"),
        ("report", _replaced("metrics.jsonl", os.mkfifo), "is a pipe"),
        ("resume", _write(ARRAY, npy(HUGE, b"1234")), "its header says"),
        ("resume", _write(ARRAY, npy(PICKLED, b"12345678")), "not plain numbers"),
        ("resume", _write(ARRAY, npy("__import__('os').getcwd()\n", b"1234")), "its header is damaged"),
        ("evaluate", _write(POLICY, b"\x10\0\0\0\0\0\0\0not a header at all"), "cannot be read"),
        ("resume", _renamed_tensor(f"{CHECKPOINT}/optimizer.safetensors"), "optimizer.safetensors"),
        ("resume", _renamed_tensor(f"{CHECKPOINT}/behaviour.safetensors"), "behaviour.safetensors"),
        ("resume", _renamed_tensor(f"{CHECKPOINT}/rank-00000/actor.safetensors"), "actor.safetensors"),
        ("evaluate", _oversized_tensor, "cannot be read"),
        ("resume", _write("config.yaml", LAUGHS), "an alias"),
        ("resume", _write("config.yaml", "a: &a [*a]"), "an alias"),
        ("report", _write("config.yaml", "a: " + "[" * 10_000), "nested too deeply"),
        ("report", _write("metrics.jsonl", '{"a": ' + "[" * 100_000), "empty"),
        ("report", _write("metrics.jsonl", json.dumps(ROW).encode("utf-16")), "empty"),
        ("resume", _set("config.yaml", "policy", "hidden", to=[10**12]), "at most 32 widths"),
        (
            "evaluate",
            _set(SETTINGS, "policy", "hidden", to=[10**12]),
            "widths",
        ),
        ("resume", _set("config.yaml", "learner", "threads", to=10**6), "threads"),
        ("resume", _set("config.yaml", "policy", "bins", to=10**10), "policy.bins"),
        ("evaluate", _set(SETTINGS, "rollout", "workers", to=3000), "rollout.workers"),
        (
            "resume",
            _all(
                _set("config.yaml", "replay", "capacity", to=10**30),
                _set("config.yaml", "replay", "memory_limit_gb", to=1e300),
            ),
            "a number has 100 bits",
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
    if told not in ("names no file", "no file of the checkpoint", "missing or unreadable", "is a pipe"):
        seal(run)
    assert told in (outcome(partial(COMMANDS[command], run)) or "it works")


def test_a_graph_without_labels_is_left_out(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast_figures(monkeypatch)
    shutil.copytree(base, tmp_path / "run")
    _set("graphs/000001.json", "axes", to=[])(tmp_path / "run")
    assert outcome(partial(COMMANDS["report"], tmp_path / "run")) is None


def test_names_are_drawn_and_printed_as_they_are(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither as mathematics nor as markup."""
    fast_figures(monkeypatch)
    for number, name in enumerate(("$\\frac{$", "[/bold]")):
        run = tmp_path / "runs" / f"{name}{number}"
        shutil.copytree(base, run)
        _set("config.yaml", "experiment", to=f"{name} {number}")(run)
        _set("config.yaml", "objective", "sigma", to=0.5 + number)(run)
    assert outcome(partial(COMMANDS["report"], tmp_path / "runs")) is None
