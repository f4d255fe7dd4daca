"""Files that may come from a stranger: run folders, checkpoints, sweeps, archives.

Whatever reads such a folder reads through this module. Kind and size of a file are checked before its first
byte is read: it must be a regular file, no link, pipe or device, and not larger than such a file can be.
Values must be plain: text, numbers of a sensible size, lists and mappings that are not nested deeply.
Interpolations (``${...}``) are text. Nothing executes. Whatever is wrong is a UserError of one line.

A link within a folder could lead a reader or a writer out of it. ``check_folder`` refuses one at any depth;
commands call it on the folder that the user named, which may be a link itself, before anything else.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import stat
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from gipo_envs.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MOST_FILES = 1_000_000
"""Files and folders in one folder that is checked."""
LARGEST_YAML = 2**17
"""Bytes of a config.yaml; those of real runs have a few thousand."""
LARGEST_JSON = 2**26
"""Bytes of a JSON file: the manifest of ten thousand ranks, or the list of ten thousand jobs."""
LARGEST_LINES = 2**28
"""Bytes of a file of JSON lines: seventy thousand iterations of a hundred metrics."""
DEEPEST = 40
"""Levels of lists and mappings in each other."""
LONGEST_TEXT = 4096
"""Characters of one text."""
LARGEST_INTEGER = 2**128
"""Random generators have states of this size; nothing else comes near."""
LARGEST_SETTING = 2**63
SPARSE_FROM = 2**30
SPARSE_FACTOR = 64
"""A file of more than ``SPARSE_FROM`` bytes that takes less than this part of them on the disk consists of
holes, which take nobody any room to send, and everybody hours to read."""

_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}

# What code that takes a state apart raises when it is of another shape. Not MemoryError, AssertionError or
# anything of the system: those would be faults of the machine or of this project.
_MISFITS: tuple[type[Exception], ...] = (
    *(ValueError, TypeError, KeyError),
    *(IndexError, AttributeError, ArithmeticError),
)
_BAD_HEADER: tuple[type[Exception], ...] = (
    *_MISFITS,
    *(OSError, SyntaxError, MemoryError, tokenize.TokenError),
)


@contextmanager
def understood(what: object, *also: type[Exception]) -> Iterator[None]:
    """Turn whatever a value of an unexpected shape makes the code inside raise into a UserError.

    Args:
        what: the file or folder that holds the value.
        also: what a library raises of its own.
    """
    try:
        yield
    except UserError:
        raise
    except (*_MISFITS, *also) as error:
        told = f"it has no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0][:300]
        raise UserError(f"{what} cannot be understood: {told or type(error).__name__}") from error


# ------------------------------------------------------------------------------------------------- folders


def check_folder(folder: Path) -> None:
    """Raise a UserError if anything in a folder, at any depth, is neither a file nor a folder.

    The folder itself may be a link, and the tracker's own folder in it, ``wandb``, holds some.
    """
    seen = 0
    pending = [folder]
    while pending:
        place = pending.pop()
        try:
            entries = list(itertools.islice(os.scandir(place), MOST_FILES))
        except FileNotFoundError:  # a run that is under way has just removed it
            continue
        except OSError as error:
            raise UserError(f"{place} cannot be read: {error.strerror}") from error
        seen += len(entries)
        if seen >= MOST_FILES:
            raise UserError(f"{folder} holds a million files or more: no run has so many")
        for entry in entries:
            try:
                mode = entry.stat(follow_symlinks=False).st_mode
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(mode):
                if entry.name != "wandb":
                    pending.append(Path(entry.path))
            elif not stat.S_ISREG(mode):
                raise _not_regular(Path(entry.path), mode)


def _not_regular(path: Path, mode: int) -> UserError:
    kind = _KINDS.get(stat.S_IFMT(mode), "no file")
    return UserError(
        f"{path} is {kind}: folders of runs hold files and folders only; put a file in its place"
    )


def without_links(path: str, flags: int) -> int:
    """An ``opener`` for Python's ``open`` that does not write through a link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


# --------------------------------------------------------------------------------------------------- files


def check_file(path: Path, limit: int | None = None) -> int:
    """Return the size of a regular file. Raises UserError: it is missing, another kind, or larger than
    ``limit`` bytes."""
    with open_regular(path, limit) as file:
        return os.fstat(file.fileno()).st_size


def open_regular(path: Path, limit: int | None = None) -> BufferedReader:
    """Open a file for reading that is no link, pipe or device, and no larger than ``limit`` bytes. Raises
    UserError: it is not, or cannot be opened."""
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise _not_regular(path, mode)
        # Not blocking: another process might put a pipe in its place.
        file = open(path, "rb", opener=lambda name, flags: without_links(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error
    facts = os.fstat(file.fileno())
    problem = None
    if not stat.S_ISREG(facts.st_mode):
        problem = str(_not_regular(path, facts.st_mode))
    elif limit is not None and facts.st_size > limit:
        problem = f"{path} has {facts.st_size:,} bytes, and such a file at most {limit:,}"
    elif facts.st_size > SPARSE_FROM and facts.st_blocks * 512 * SPARSE_FACTOR < facts.st_size:
        problem = f"{path} has {facts.st_size:,} bytes, nearly all of them holes: it is no file of a run"
    if problem is not None:
        file.close()
        raise UserError(problem)
    return file


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes; errors as ``open_regular``."""
    with open_regular(path, limit) as file:
        try:
            return file.read(limit + 1)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error


def read_text(path: Path, limit: int) -> str:
    """The same as text, which must be UTF-8."""
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read: it is no UTF-8 text ({error.reason})") from error


# -------------------------------------------------------------------------------------------------- values


def plain(value: Any, largest: int = LARGEST_INTEGER, depth: int = 0) -> Any:
    """Return a value that consists of mappings with text for keys, lists, text, numbers, truth values and
    nothing. Raises ValueError: it holds something else, or something beyond this module's limits."""
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        if abs(value) >= largest:
            raise ValueError(f"a number has {value.bit_length()} bits")
        return value
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT:
            raise ValueError(f"a text has {len(value):,} characters")
        value.encode()  # half a surrogate pair is no text that could be written anywhere
        return value
    if depth >= DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(value, list):
        for inner in value:
            plain(inner, largest, depth + 1)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"a key is a {type(key).__name__}, not text")
            plain(key)
            plain(inner, largest, depth + 1)
    else:
        raise ValueError(f"a {type(value).__name__} stands in it: expected text, numbers, lists and mappings")
    return value


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of a size that can be measured and drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e100


def parse_json(text: str | bytes) -> Any:
    """A plain value from JSON text, in UTF-8. Raises ValueError: it is none."""
    try:
        return plain(json.loads(text if isinstance(text, str) else text.decode()))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, limit: int = LARGEST_JSON) -> dict[str, Any]:
    """The mapping in a JSON file. Raises UserError: there is no such file, or it is none."""
    text = read_text(path, limit)
    try:
        values = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} cannot be read: expected a mapping, it holds a {type(values).__name__}")
    return values


def json_lines(path: Path) -> Iterator[Any]:
    """The values in a file of JSON lines, up to the first line that is none (one that was cut short); none
    if there is no file."""
    if not os.path.lexists(path):
        return
    with open_regular(path, LARGEST_LINES) as file:
        for line in file:
            try:
                yield parse_json(line)
            except ValueError:
                return


class _Loader(yaml.SafeLoader):
    """YAML without references, which a few lines of make a value of billions, or one that holds itself."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it refers to another place in itself (an alias)")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of settings. Raises UserError: it cannot be read, or holds something else.

    Interpolations and whatever else OmegaConf would resolve are text.
    """
    text = read_text(path, LARGEST_YAML)
    try:
        values = plain(yaml.load(text, _Loader), LARGEST_SETTING)
    except RecursionError:
        raise UserError(f"{path} cannot be read: it is nested too deeply") from None
    except (ValueError, ArithmeticError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(values, dict) or not values:
        raise UserError(f"{path} holds no settings: expected key: value lines")
    return values


# -------------------------------------------------------------------------------------------------- arrays


def read_npy(path: Path) -> NDArray[Any]:
    """A numpy array in a file, read-only, read from disk as it is used. Raises UserError: it is damaged,
    holds objects, or its size is not that of its shape.

    numpy's own reader trusts the shape that it finds.
    """
    npy = np.lib.format
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            shape, by_columns, dtype = read[npy.read_magic(file)](file)
        except _BAD_HEADER as error:
            raise UserError(f"{path} cannot be read: it is no npy file, or its header is damaged") from error
        start = file.tell()
    if dtype.hasobject or by_columns or min(shape, default=0) < 0:
        raise UserError(f"{path} cannot be read: it holds {dtype} {shape}, not plain numbers in rows")
    expected = start + math.prod(shape) * dtype.itemsize
    if expected != size:
        raise UserError(f"{path} has {size:,} bytes, and its header says {expected:,}")
    if size == start:  # nothing, which cannot be mapped
        with understood(path):
            return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. Raises UserError: it is damaged."""
    from safetensors.torch import load_file

    return dict(_safetensors(path, load_file))


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The same as numpy arrays."""
    from safetensors.numpy import load_file

    return dict(_safetensors(path, load_file))


def _safetensors(path: Path, load: Any) -> Mapping[str, Any]:
    from safetensors import SafetensorError

    check_file(path)
    damaged: tuple[type[Exception], ...] = (SafetensorError, OSError, *_MISFITS)
    try:
        found: Mapping[str, Any] = load(path)
    except damaged as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    return found


def fitting(
    path: Path, stored: Mapping[str, Any], expected: Mapping[str, tuple[Sequence[int | None], Any]]
) -> None:
    """Raise a UserError unless arrays or tensors are as they should be.

    Args:
        path: the file, for the message.
        stored: by name; further ones are of no account.
        expected: shape and type by name; None in a shape stands for any count.
    """
    for name, (shape, dtype) in expected.items():
        if name not in stored:
            raise UserError(f"{path} has no {name}")
        own = stored[name]
        alike = len(own.shape) == len(shape) and all(
            wanted is None or wanted == count for wanted, count in zip(shape, own.shape)
        )
        if not alike or own.dtype != dtype:
            told = "x".join("n" if count is None else str(count) for count in shape)
            raise UserError(
                f"{path}: {name} is {own.dtype} {tuple(own.shape)}, and {dtype} ({told}) was expected"
            )


def text_stream(path: Path) -> IO[str]:
    """Open a file for writing anew, not through a link."""
    return open(path, "w", opener=without_links)
