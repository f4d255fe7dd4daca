"""The published image path against what TensorFlow 2.15 made of the same frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gipo_envs import openvla_image

FIXTURE = Path(__file__).parents[1] / "fixtures" / "openvla_oft" / "image.npz"


@pytest.fixture(scope="module")
def stages() -> dict[str, NDArray[np.uint8]]:
    with np.load(FIXTURE) as file:
        return dict(file)


def test_decoding_is_bit_exact(stages: dict[str, NDArray[np.uint8]]) -> None:
    np.testing.assert_array_equal(openvla_image.decode_jpeg(stages["jpeg"].tobytes()), stages["decoded"])


def test_encoding_loses_the_same(stages: dict[str, NDArray[np.uint8]]) -> None:
    np.testing.assert_array_equal(openvla_image.jpeg_round_trip(stages["raw"]), stages["decoded"])


def test_resizing_is_bit_exact(stages: dict[str, NDArray[np.uint8]]) -> None:
    np.testing.assert_array_equal(openvla_image.resize_lanczos(stages["decoded"]), stages["resized"])


def test_cropping_is_bit_exact(stages: dict[str, NDArray[np.uint8]]) -> None:
    np.testing.assert_array_equal(openvla_image.centre_crop(stages["resized"]), stages["cropped"])


def test_whole_path_is_bit_exact(stages: dict[str, NDArray[np.uint8]]) -> None:
    """The fixture's frame is upright; a simulator's is upside down."""
    image_format = openvla_image.OPENVLA_LIBERO
    rendered = stages["raw"][::-1, ::-1]
    prepared = image_format.apply(rendered)
    assert prepared.shape == (*image_format.output_size(256, 256), 3)
    np.testing.assert_array_equal(prepared, stages["cropped"])
    np.testing.assert_array_equal(image_format.apply(rendered), prepared)
