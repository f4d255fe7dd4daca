"""Arithmetic on a GPU that gives the same bits twice: ``learner.deterministic``.

On a CPU every operation used here does so by itself, with a fixed number of threads. On a GPU some kernels
add in whatever order their blocks finish, and cuBLAS may share its workspace between streams. torch's
deterministic mode chooses other kernels (flash and memory-efficient attention then run their backward passes
in a fixed order, cuDNN's attention is not chosen) and raises where there is none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

from gipo_envs.errors import UserError

_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
_WORKSPACES = (":4096:8", ":16:8")
"""The values under which cuBLAS gives the same bits (cuBLAS documentation, "Results reproducibility")."""


_memory: Any = torch.utils.deterministic
"""Its one attribute is a property that type checkers do not see."""


@contextmanager
def deterministic(wanted: bool, device: torch.device) -> Iterator[None]:
    """Compute so while the context is open, if that is wanted and the device is a GPU.

    To be entered before anything is computed on the GPU: cuBLAS reads its variable once.

    Raises:
        UserError: CUBLAS_WORKSPACE_CONFIG has a value that rules it out.
    """
    if not wanted or device.type != "cuda":
        yield
        return
    before = os.environ.get(_VARIABLE)
    if before not in (None, *_WORKSPACES):
        raise UserError(
            f"{_VARIABLE}={before} and learner.deterministic=true: unset it, or set it to {_WORKSPACES[0]}"
        )
    was_on, filled = torch.are_deterministic_algorithms_enabled(), _memory.fill_uninitialized_memory
    os.environ.setdefault(_VARIABLE, _WORKSPACES[0])
    torch.use_deterministic_algorithms(True)
    # Writing to every new tensor costs bandwidth and helps only programs that read what they never wrote.
    _memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on)
        _memory.fill_uninitialized_memory = filled
        if before is None:
            os.environ.pop(_VARIABLE, None)
