"""One rule of precision for all policies: what trains is float32, with its gradient, its moments and the sums
over ranks; low precision is a matter of the arithmetic inside a forward.

``KeepsDtype`` is for parts that also compute in float32, ``compute_in`` for trained ones that need not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn


class KeepsDtype(nn.Module):
    """A module whose tensors follow ``.to(device)`` but not ``.to(dtype)``, ``.bfloat16()`` or ``.half()``.

    All of those go through ``nn.Module._apply``, also when a training engine calls them on an outer module.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)


def compute_in(network: nn.Module, dtype: torch.dtype) -> None:
    """Let a network of float32 parameters compute in another dtype (in place): every module sees its own
    parameters cast, and gradients arrive in float32. ``KeepsDtype`` modules go on in float32.

    Not ``torch.autocast``: its lists of operations differ between devices, and it has none for the fake
    device on which the tests run whole updates.
    """
    if dtype == torch.float32:
        return
    for module in network.modules():
        names = tuple(name for name, own in module.named_parameters(recurse=False) if own is not None)
        if names and not isinstance(module, KeepsDtype):
            module.__class__ = _casting(type(module), names, dtype)  # type: ignore[arg-type]


@cache
def _casting(kind: type[nn.Module], names: tuple[str, ...], dtype: torch.dtype) -> type[nn.Module]:
    """A subclass whose parameters read as ``dtype``; ``named_parameters`` goes on giving the real ones."""

    def cast(name: str) -> Any:
        return property(lambda module: module._parameters[name].to(dtype))

    return type(kind.__name__, (kind,), {name: cast(name) for name in names})
