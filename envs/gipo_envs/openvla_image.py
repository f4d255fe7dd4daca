"""The image path of the published OpenVLA-OFT evaluation, in numpy, to the bit of the TensorFlow original.

A policy was trained on these pixels: the 256x256 render turned by 180 degrees, stored as JPEG, resized to
224x224 and cropped to its central 90 % (the crop that evaluation uses in place of the random crops of
training). Leaving out a step costs success, so all of them are here:

1. rotate by 180 degrees (LIBERO's cameras are upside down);
2. JPEG encode and decode: quality 95, 4:2:0 chroma, fast integer DCT, plain chroma upsampling;
3. resize with a Lanczos kernel of radius 3, widened when shrinking, round half to even, clip;
4. cut out the central square of side sqrt(0.9), resample it bilinearly to the same size, and store
   floor(255.5 * x) as TensorFlow's ``convert_image_dtype`` does.

The arithmetic follows TensorFlow's kernels operation by operation in float32 (``scale_and_translate_op.cc``,
``crop_and_resize_op.cc``), because a sum in another order rounds some values to their neighbour.

Source: ``experiments/robot/libero/libero_utils.py`` and ``experiments/robot/openvla_utils.py`` of
OpenVLA-OFT.

Shape suffixes: H height, W width, S side of the result.
"""

from __future__ import annotations

import functools
import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from gipo_envs.image_formats import ImageFormat

SIDE = 224
JPEG_QUALITY = 95
CROP_AREA = 0.9
LANCZOS_RADIUS = 3.0
Frame = NDArray[np.uint8]
Floats = NDArray[np.float32]


def jpeg_round_trip(frame: Frame) -> Frame:
    """Encode and decode uint8 (H, W, 3)."""
    return decode_jpeg(encode_jpeg(frame))


def encode_jpeg(frame: Frame) -> bytes:
    """As ``tf.io.encode_jpeg`` does by default: the same compressed data under another file header.

    Pillow, because simplejpeg's encoder goes through the TurboJPEG interface, whose result differs.
    """
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(frame))
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return buffer.getvalue()


def decode_jpeg(data: bytes) -> Frame:
    """As ``tf.io.decode_image`` does by default. Pillow's decoder differs by up to 4."""
    frame: Frame = simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=False)
    return frame


def resize_lanczos(frame: Frame, side: int = SIDE) -> Frame:
    """uint8 (H, W, 3) to (S, S, 3): ``tf.image.resize(method="lanczos3", antialias=True)``, rounded.

    Rows first, then columns, each a weighted sum taken in the order of the source pixels.
    """
    rows = _weighted_sum(frame.astype(np.float32), side)
    both = _weighted_sum(rows.swapaxes(0, 1), side).swapaxes(0, 1)
    return np.clip(np.rint(both), 0, 255).astype(np.uint8)


def _weighted_sum(image: Floats, size: int) -> Floats:
    """Resample the first axis: float32 (H, ...) to (S, ...)."""
    sources, weights = _lanczos_spans(image.shape[0], size)
    shape = (-1,) + (1,) * (image.ndim - 1)
    result = np.zeros((size, *image.shape[1:]), np.float32)
    for source, weight in zip(sources, weights, strict=True):
        result += weight.reshape(shape) * image[source]
    return result


@functools.lru_cache(maxsize=8)
def _lanczos_spans(size_in: int, size_out: int) -> tuple[list[NDArray[np.intp]], list[Floats]]:
    """For the n-th pixel of every span: its index (S,) and its weight (S,), 0 behind a span's end."""
    # TensorFlow's ``ComputeSpansCore`` in float32.
    one = np.float32(1)
    inverse_scale = one / (np.float32(size_out) / np.float32(size_in))
    kernel_scale = max(inverse_scale, one)
    radius = np.float32(LANCZOS_RADIUS)
    centre = (np.arange(size_out, dtype=np.float32) + np.float32(0.5)) * inverse_scale
    start = np.ceil(centre - radius * kernel_scale - np.float32(0.5)).astype(np.intp)
    end = np.floor(centre + radius * kernel_scale - np.float32(0.5)).astype(np.intp)
    start, end = np.clip(start, 0, size_in - 1), np.clip(end, 0, size_in - 1) + 1
    sources, weights = [], []
    total = np.zeros(size_out, np.float32)
    for offset in range(int((end - start).max())):
        source = start + offset
        position = source.astype(np.float32) + np.float32(0.5) - centre
        weight = _lanczos(np.abs(position * (one / kernel_scale)))
        weight = np.where(source < end, weight, np.float32(0))
        total += weight
        sources.append(np.minimum(source, size_in - 1))
        weights.append(weight)
    return sources, [weight * (one / total) for weight in weights]


def _lanczos(x: Floats) -> Floats:
    """radius * sin(pi x) * sin(pi x / radius) / (pi x)^2, 1 at 0 and 0 beyond the radius."""
    radius, pi = np.float32(LANCZOS_RADIUS), np.float32(np.pi)

    def sine(angle: Floats) -> Floats:
        # The C library's float sine is correctly rounded almost everywhere; numpy's vectorised one is not.
        return np.sin(angle.astype(np.float64)).astype(np.float32)

    safe = np.maximum(x, np.float32(1e-3))
    value = radius * sine(pi * safe) * sine(pi * safe / radius) / (pi * pi * safe * safe)
    return np.where(x > radius, np.float32(0), np.where(x <= np.float32(1e-3), np.float32(1), value))


def centre_crop(frame: Frame, area: float = CROP_AREA) -> Frame:
    """The central square of ``area`` of a frame (S, S, 3), resampled bilinearly to (S, S, 3)."""
    side = frame.shape[0]
    image = frame.astype(np.float32) * np.float32(1 / 255)
    low, high, fraction = _bilinear_taps(side, area)
    columns = fraction[None, :, None]
    top, bottom = image[low], image[high]
    top = top[:, low] + (top[:, high] - top[:, low]) * columns
    bottom = bottom[:, low] + (bottom[:, high] - bottom[:, low]) * columns
    cropped = top + (bottom - top) * fraction[:, None, None]
    scaled = np.clip(cropped, np.float32(0), np.float32(1)) * np.float32(255.5)
    return np.minimum(scaled, np.float32(255)).astype(np.uint8)


@functools.lru_cache(maxsize=8)
def _bilinear_taps(side: int, area: float) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Lower and upper neighbour and the way between them, of every sample along one axis."""
    length = np.float32(np.sqrt(np.float32(area)))
    first = (np.float32(1) - length) / np.float32(2)
    last = first + length
    span = np.float32(side - 1)
    step = (last - first) * span / span
    position = first * span + np.arange(side, dtype=np.float32) * step
    low = np.floor(position)
    return low.astype(np.intp), np.ceil(position).astype(np.intp), position - low


def published_image(frame: Frame) -> Frame:
    """A LIBERO render uint8 (H, W, 3), as the simulator gives it, to the policy's uint8 (224, 224, 3)."""
    return centre_crop(resize_lanczos(jpeg_round_trip(frame[::-1, ::-1])))


OPENVLA_LIBERO = ImageFormat(apply=published_image, output_size=lambda height, width: (SIDE, SIDE))
