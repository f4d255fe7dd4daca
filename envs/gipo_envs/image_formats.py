"""How a worker prepares a camera's frame before it crosses shared memory, by name.

A format is the place for what a policy's published preprocessing does to pixels (cropping, resizing, JPEG
round trips). It runs in the worker, so only uint8 arrays of the final size are copied and stored.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

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


RAW = ImageFormat(apply=lambda frame: frame, output_size=lambda height, width: (height, width))

ROTATED = ImageFormat(apply=lambda frame: frame[::-1, ::-1], output_size=RAW.output_size)
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
    image_format = pkgutil.resolve_name(FORMATS[name])
    assert isinstance(image_format, ImageFormat)
    return image_format
