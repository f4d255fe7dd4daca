"""Parts of a network that keep their precision when the rest of it is cast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

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
