"""Memory that a learner on the CPU keeps between updates."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from gipo_vla.run.allocator import keep_freed_memory

UPDATES = """
import ctypes, resource, sys, torch
from gipo_vla.run.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory(torch.device("cpu"))
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def update():
    # 4 MiB each, as the logits of a batch. Without tensors' own small blocks, one of which may lie on top.
    held = [libc.malloc(2**22) for _ in range(8)]
    for block in held:
        ctypes.memset(block, 1, 2**22)
    for block in reversed(held):
        libc.free(block)
for _ in range(3):
    update()
before = resource.getrusage(resource.RUSAGE_SELF)
for _ in range(20):
    update()
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_minflt - before.ru_minflt, after.ru_maxrss - before.ru_maxrss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_an_update_finds_the_memory_of_the_one_before() -> None:
    """In processes of their own, since it cannot be taken back: 32 MiB would be 8,192 pages an update."""
    faults = {}
    for how in ("kept", "as usual"):
        done = subprocess.run(
            [sys.executable, "-c", UPDATES, how], capture_output=True, text=True, check=True
        )
        faults[how], grown = map(int, done.stdout.split())
        assert grown < 40 << 10, "KiB: no more than one update takes"
    assert 10 * faults["kept"] < faults["as usual"]


def test_nothing_is_changed_where_a_gpu_learns() -> None:
    assert not keep_freed_memory(torch.device("cuda"))
