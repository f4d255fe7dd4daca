"""Image formats by name."""

from __future__ import annotations

import numpy as np
import pytest

from gipo_envs import UserError, image_formats


@pytest.mark.parametrize("name", image_formats.FORMATS)
@pytest.mark.parametrize("size", [(64, 64), (128, 96)])
def test_sizes_are_as_announced(name: str, size: tuple[int, int]) -> None:
    image_format = image_formats.get(name)
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    prepared = image_format.apply(frame.copy())
    assert prepared.shape == (*image_format.output_size(*size), 3)
    assert prepared.dtype == np.uint8
    np.testing.assert_array_equal(prepared, image_format.apply(frame.copy()))


def test_raw_is_identity() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(image_formats.get("raw").apply(frame), frame)


def test_unknown() -> None:
    with pytest.raises(UserError, match=r"unknown camera.format 'row'; nearest: raw"):
        image_formats.get("row")
