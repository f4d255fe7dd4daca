"""Small data of many finished runs in a few compressed files, which a report reads like run folders.

An archive is ``runs-NN.jsonl.xz``: xz over JSON lines, one line for each run, sorted by name:

    {"name": ..., "overrides": [...], "config": {...}, "metrics": {metric: [value of each row]},
     "evaluation": {...}, "evaluations": {...}, "finished": {...}}

Columns instead of rows, and all runs in one stream, make it a tenth of the size of the folders. A value
that a row does not have is null. Floats keep twelve significant digits: networks compute in float32, which
has seven, and reports print six. Equal runs give equal bytes. Reading executes nothing, and neither the text
nor the memory to unpack it can exceed a limit.
"""

from __future__ import annotations

import fcntl
import json
import lzma
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from gipo_envs.errors import UserError
from gipo_vla import foreign
from gipo_vla.reporting import checks
from gipo_vla.telemetry.metrics import read_json_lines, replace_file

Record = dict[str, Any]
Item = TypeVar("Item")

PATTERN = "runs-*.jsonl.xz"
DIGITS = 12
LARGEST_FILE = 950_000
"""Bytes above which an archive is divided, so that no file that is committed exceeds a megabyte."""
LARGEST_TEXT = 2**28
"""Bytes that an archive may hold uncompressed; more is refused."""
DECODER_MEMORY = 2**27
PATHS = ("run_dir", "resume", "stop_after")
"""Settings of a session, which are not kept."""


# ------------------------------------------------------------------------------------------------- reading


def archives(folder: Path) -> list[Path]:
    """The archives in a folder, in their order."""
    return sorted(folder.glob(PATTERN))


def read(path: Path) -> list[Record]:
    """The runs of an archive.

    Raises:
        UserError: the file is damaged, no archive, or larger than any archive.
    """
    packed = foreign.read_bytes(path, LARGEST_TEXT)
    try:
        decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=DECODER_MEMORY)
        text = decoder.decompress(packed, max_length=LARGEST_TEXT)
        if not decoder.eof:
            raise ValueError(f"it is cut short, or holds more than {LARGEST_TEXT:,} bytes")
        records: list[Record] = [foreign.parse_json(line) for line in text.splitlines()]
        for number, one in enumerate(records, start=1):
            if not isinstance(one, dict) or not {"name", "metrics"} <= one.keys():
                raise ValueError(f"line {number} of it is no run")
            if (told := checks.problem(one)) is not None:
                raise ValueError(f"line {number} of it is no run: {told}")
    except (EOFError, ValueError, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return records


def read_folder(folder: Path) -> list[Record]:
    """The runs of all archives in a folder; none where there is no folder."""
    return [record for path in archives(folder) for record in read(path)]


def read_mapping(path: Path) -> Record | None:
    """What a YAML or JSON file holds; None if there is none.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    if not os.path.lexists(path):
        return None
    return foreign.read_json(path) if path.suffix == ".json" else foreign.read_yaml(path)


def read_part(run: Path, part: str) -> Record | None:
    """``evaluation`` or ``finished`` of a run folder; None if it has none. Raises UserError: no run wrote
    it."""
    values = read_mapping(run / f"{part}.json")
    if (told := checks.problem_of(part, values)) is not None:
        raise UserError(f"{run / part}.json {told}: it is not a run's")
    return values


def read_sweep(path: Path) -> Record | None:
    """A sweep's list of jobs; None if there is none. Raises UserError: it cannot be read, or is none."""
    listed = read_mapping(path)
    if listed is not None and (told := checks.sweep_problem(listed)) is not None:
        raise UserError(f"{path} cannot be read as a sweep's list of jobs: it {told}")
    return listed


def overrides_of(sweep: Path) -> dict[str, list[str]]:
    """What a sweep.json says that each job was started with, by the digest at the end of the job's name."""
    jobs = (read_sweep(sweep) or {"jobs": []})["jobs"]
    return {job["name"].rpartition("-")[2]: job["overrides"] for job in jobs}


def rows_of(columns: Mapping[str, Sequence[Any]]) -> list[Record]:
    """The rows of a table that is kept by columns."""
    return [dict(zip(columns, values)) for values in zip(*columns.values(), strict=True)]


# ------------------------------------------------------------------------------------------------- writing


def thin(rows: Sequence[Item], limit: int) -> list[Item]:
    """At most ``limit`` rows, evenly spread, the first and the last among them."""
    if len(rows) <= limit:
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / (limit - 1))] for index in range(limit)]


def record(run: Path, name: str, rows: int | None = None, overrides: Sequence[str] | None = None) -> Record:
    """What a run folder holds, as an archive has it.

    Args:
        run: the folder.
        name: of the run in the archive.
        rows: at most so many lines of metrics.jsonl, evenly spread; None: all.
        overrides: what the run was started with, where a sweep started it.

    Raises:
        UserError: a file cannot be read, holds what no run writes, or is a link.
    """
    foreign.check_folder(run)
    metrics = read_json_lines(run / "metrics.jsonl")
    kept: Record = {
        "name": name,
        "overrides": overrides and list(overrides),
        "config": read_mapping(run / "config.yaml"),
        "metrics": _columns(metrics if rows is None else thin(metrics, rows)),
        "evaluations": _columns(read_json_lines(run / "evaluations.jsonl")) or None,
        "evaluation": read_mapping(run / "evaluation.json"),
        "finished": read_mapping(run / "finished.json"),
    }
    kept = {key: value for key, value in kept.items() if value is not None}
    if (told := checks.problem(kept)) is not None:
        raise UserError(f"{run} is no run's folder: {told}")
    return kept


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    if len(names) * len(rows) > checks.MOST_CELLS:
        raise UserError(f"a run has {len(names):,} metrics in {len(rows):,} rows: no run has so many")
    return {name: [row.get(name) for row in rows] for name in names}


def add(folder: Path, records: Iterable[Record]) -> None:
    """Put runs into a folder's archives, without settings of their sessions; a run that is there already, by
    its name, stays as it is.

    Raises:
        UserError: an archive that is there cannot be read.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        have = {one["name"]: one for one in read_folder(folder)}
        runs = {one["name"]: _without_paths(one) for one in records} | have
        if len(runs) == len(have):
            return
        parts = _compressed([runs[name] for name in sorted(runs)])
        paths = [folder / PATTERN.replace("*", f"{number:02d}") for number in range(len(parts))]
        for path, data in zip(paths, parts):
            replace_file(path, data)
        for path in set(archives(folder)) - set(paths):
            path.unlink()


def _without_paths(run: Record) -> Record:
    config = {key: None if key in PATHS else value for key, value in run.get("config", {}).items()}
    return run | {"config": config} if config else run


def pack(folder: Path, sweep: Path | None = None) -> int:
    """Move the run folders directly in ``folder`` into its archives; how many they were.

    Args:
        sweep: the sweep.json with the jobs' overrides; None: the one in ``folder``, if there is one.
    """
    foreign.check_folder(folder)
    overrides = overrides_of(sweep or folder / "sweep.json")
    runs = sorted(path.parent for path in folder.glob("*/metrics.jsonl"))
    add(folder, [record(run, run.name, overrides=overrides.get(run.name.rpartition("-")[2])) for run in runs])
    for run in runs:
        shutil.rmtree(run)
    return len(runs)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from changing the archives: parts of one sweep may end together."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _compressed(runs: Sequence[Record]) -> list[bytes]:
    lines = [json.dumps(_rounded(run), separators=(",", ":")) + "\n" for run in runs]
    data = lzma.compress("".join(lines).encode(), preset=6)
    if len(data) <= LARGEST_FILE or len(runs) == 1:
        return [data]
    half = len(runs) // 2
    return [*_compressed(runs[:half]), *_compressed(runs[half:])]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
