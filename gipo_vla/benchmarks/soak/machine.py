"""What a machine lets its users do: a small disk of their own, and a clock of their own.

Both are Linux namespaces, made with util-linux; nothing of them outlives the processes in them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

DISK = ("unshare", "--user", "--map-root-user", "--mount")
CLOCK = ("unshare", *(() if os.geteuid() == 0 else ("--user", "--map-root-user")), "--time")
DISK_MEGABYTES = 96
"""A run is not begun with less than 64 MB free."""


def _works(*command: str) -> bool:
    if not all(shutil.which(program) for program in ("unshare", "nsenter")):
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@cache
def has_disks() -> bool:
    """Whether users may mount a file system for themselves."""
    return _works(*DISK, "mount", "-t", "tmpfs", "tmpfs", "/mnt")


@cache
def has_clocks() -> bool:
    """Whether a process may have a monotonic clock of its own."""
    return _works(*CLOCK, "--monotonic=100", "true")


def clock_prefix(seconds: int) -> list[str]:
    """Before a command whose monotonic clock is to be ahead by so much."""
    return [*CLOCK, f"--monotonic={seconds}"] if seconds else []


def clock_of(process: int) -> int:
    """By how many seconds the monotonic clock of a process is ahead."""
    with suppress(OSError, ValueError, IndexError):
        words = Path(f"/proc/{process}/timens_offsets").read_text().split()
        return int(words[words.index("monotonic") + 1])
    return 0


class SmallDisk:
    """A disk of ``DISK_MEGABYTES`` in a mount namespace that a process keeps until ``close``, or until the
    soak dies.

    Args:
        place: where it is mounted, for those inside.
    """

    def __init__(self, place: Path) -> None:
        place.mkdir(parents=True)
        options = f"size={DISK_MEGABYTES}m,mode=755"
        script = f'mount -t tmpfs -o {options} tmpfs "$1" && echo && exec cat'
        self._keeper = subprocess.Popen(
            [*DISK, "sh", "-c", script, "sh", str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._keeper.stdout is not None
        if not self._keeper.stdout.readline():
            raise OSError(f"no disk could be mounted at {place}")
        self.inside = place
        self.outside = Path(f"/proc/{self._keeper.pid}/root{place.absolute()}")
        """The same folder, for those outside."""

    @property
    def prefix(self) -> list[str]:
        """Before a command that is to see the disk."""
        enter = ["nsenter", f"--target={self._keeper.pid}", "--user", "--mount", "--preserve-credentials"]
        return [*enter, f"--wd={Path.cwd()}"]

    @property
    def free(self) -> int:
        """Bytes."""
        found = os.statvfs(self.outside)
        return found.f_bavail * found.f_frsize

    def fill(self) -> None:
        """Take all the room that is left, to the last block."""
        with (self.outside / "filler").open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(2**16))

    def make_room(self) -> None:
        (self.outside / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        self._keeper.kill()
        self._keeper.communicate()
