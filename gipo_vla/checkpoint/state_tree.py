"""Nested plain values with tensors among them, as JSON and safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TENSOR = "__tensor__"


def split(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Plain values that JSON can hold, and the tensors (numpy arrays too) that stood in them, as copies.
    Raises TypeError: something else stands there; a checkpoint must hold nothing that executes on load."""
    tensors: dict[str, Tensor] = {}
    return _split(state, "", tensors), tensors


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().clone().contiguous()
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{path or 'the state'} has keys that are not text: JSON would change them")
        return {key: _split(inner, f"{path}/{key}", tensors) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(inner, f"{path}/{index}", tensors) for index, inner in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{path or 'the state'} is a {type(value).__name__}: give numbers, text and tensors only")


def join(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Take back what ``split`` returned; tuples come back as lists, arrays as tensors."""
    if isinstance(plain, dict):
        if plain.keys() == {_TENSOR}:
            return tensors[plain[_TENSOR]]
        return {key: join(inner, tensors) for key, inner in plain.items()}
    if isinstance(plain, list):
        return [join(inner, tensors) for inner in plain]
    return plain
