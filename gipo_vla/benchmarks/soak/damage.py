"""Files of a checkpoint that were cut short, torn or flipped while nothing ran, and whether the resume named
them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gipo_vla.checkpoint import folder as folders


@dataclass(frozen=True)
class Damage:
    """What was done to a checkpoint, to be told by the next launch that looks at it."""

    how: str
    file: Path
    checkpoint: str
    log: Path
    log_begins: int
    """Bytes that the log had."""

    def found(self) -> str:
        """The line of the log that names the checkpoint as damaged; empty if there is none yet."""
        named = (line for line in self._lines() if "passed over a damaged checkpoint" in line)
        return next((line for line in named if f"/{self.checkpoint}" in line), "")

    def used(self) -> bool:
        """Whether a launch has resumed from it as if it were whole."""
        return any(line.endswith(f"/{self.checkpoint}") and "resuming from" in line for line in self._lines())

    def _lines(self) -> list[str]:
        with self.log.open("rb") as file:
            file.seek(self.log_begins)
            return [line.rstrip() for line in file.read().decode(errors="replace").splitlines()]


def damage(run: Path, log: Path, how: str, random: np.random.Generator) -> Damage | None:
    """Damage a file of the newest checkpoint; None where there is none before it to fall back on.

    Args:
        log: where the next launch of this run will say what it found.
        how: one of ``schedule.DAMAGES``.
    """
    names = folders.names(run / "checkpoints")
    if len(names) < 2:
        return None
    newest = run / "checkpoints" / names[0]
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    file = files[random.integers(len(files))]
    file.write_bytes(damaged(file.read_bytes(), how, random))
    return Damage(how, file, newest.name, log, log.stat().st_size)


def damaged(content: bytes, how: str, random: np.random.Generator) -> bytes:
    """The content with one bit flipped, cut short at a random byte, or torn: with zeros from there on, as a
    file whose last pages never reached the disk."""
    at = int(random.integers(len(content)))
    if how == "cut short":
        return content[:at]
    torn = content[:at] + bytes(len(content) - at)
    if how == "torn" and torn != content:
        return torn
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]
