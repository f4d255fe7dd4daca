"""How a worker prepares a camera's frame before it crosses shared memory, by name.

A format is the place for what a policy's published preprocessing does to pixels (cropping, resizing, JPEG
round trips). It runs in the worker, so only uint8 arrays of the final size are copied and stored.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gipo_envs.errors import UserError, nearest


@dataclass(frozen=True)
class ImageFormat:
    """One way to prepare frames."""

    apply: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
    """Frame uint8 (H, W, 3) -> uint8 (H', W', 3); deterministic."""
    output_size: Callable[[int, int], tuple[int, int]]
    """(H, W) -> (H', W')."""


def _identity(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return frame


def _same_size(height: int, width: int) -> tuple[int, int]:
    return height, width


def _turn(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return frame[::-1, ::-1]


RAW = ImageFormat(apply=_identity, output_size=_same_size)

ROTATED = ImageFormat(apply=_turn, output_size=_same_size)
"""What of LIBERO's published image path costs nothing: its turn by 180 degrees."""

FORMATS: dict[str, str] = {
    "raw": "gipo_envs.image_formats:RAW",
    "rotated": "gipo_envs.image_formats:ROTATED",
    "openvla": "gipo_envs.openvla_image:OPENVLA_LIBERO",
}
"""Format name -> ``module:attribute`` of its ``ImageFormat``, imported when first asked for."""


def get(name: str) -> ImageFormat:
    """The image format of that name.

    Raises:
        UserError: no such format.
    """
    if name not in FORMATS:
        raise UserError(f"unknown camera.format {name!r}; {nearest(name, FORMATS)}")
    module_name, attribute = FORMATS[name].split(":")
    image_format: Any = getattr(importlib.import_module(module_name), attribute)
    assert isinstance(image_format, ImageFormat)
    return image_format
