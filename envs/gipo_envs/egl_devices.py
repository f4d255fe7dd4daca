"""Which of EGL's devices is the GPU that this process computes on.

CUDA and EGL count the GPUs of a machine each in an order of its own, and ``CUDA_VISIBLE_DEVICES`` hides GPUs
from CUDA alone. NVIDIA's driver knows both: the attribute ``EGL_CUDA_DEVICE_NV`` of an EGL device is its
number in CUDA as this process sees it (EGL_NV_device_cuda: "compatible with CUDA API functions"). So numbers,
UUIDs and names of MIG slices in ``CUDA_VISIBLE_DEVICES`` need no reading here.
"""

from __future__ import annotations

import ctypes
import os

from gipo_envs.errors import UserError

_LIBRARY = "libEGL.so.1"
_CUDA_DEVICE = 0x323A
"""``EGL_CUDA_DEVICE_NV`` of EGL_NV_device_cuda."""
_QUERY_DEVICES = ctypes.CFUNCTYPE(
    ctypes.c_uint, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int)
)
_QUERY_ATTRIBUTE = ctypes.CFUNCTYPE(
    ctypes.c_uint, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_ssize_t)
)


def drawing_device() -> int | None:
    """The number, in EGL's order, of the device that this process draws on.

    ``MUJOCO_EGL_DEVICE_ID`` where it is set, else the GPU that its rank computes on: CUDA's device
    LOCAL_RANK, a variable that simulator workers inherit from the rank they belong to. With more ranks than
    GPUs they take turns. None: the driver names no device of CUDA, and MuJoCo takes the first that works.

    Raises:
        UserError: ``MUJOCO_EGL_DEVICE_ID`` is not a number.
    """
    own = os.environ.get("MUJOCO_EGL_DEVICE_ID")
    if own is not None:
        if not own.strip().isdecimal():
            raise UserError(f"MUJOCO_EGL_DEVICE_ID={own!r}: give a number, from 0, in EGL's order of devices")
        return int(own)
    by_cuda = {cuda: egl for egl, cuda in reversed(list(enumerate(cuda_numbers()))) if cuda is not None}
    if not by_cuda:
        return None
    numbers = sorted(by_cuda)
    return by_cuda[numbers[int(os.environ.get("LOCAL_RANK", 0)) % len(numbers)]]


def cuda_numbers(library: str | None = None) -> list[int | None]:
    """For every EGL device, in EGL's order, its number in CUDA; None where it has none.

    A GPU that is hidden from CUDA has none, nor has a device of Mesa's.

    Args:
        library: of EGL; None: GLVND's.
    """
    try:
        address_of = ctypes.CDLL(library or _LIBRARY).eglGetProcAddress
    except (OSError, AttributeError):
        return []
    address_of.restype, address_of.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    devices_at, attribute_at = address_of(b"eglQueryDevicesEXT"), address_of(b"eglQueryDeviceAttribEXT")
    if not devices_at or not attribute_at:
        return []
    query_devices, query_attribute = _QUERY_DEVICES(devices_at), _QUERY_ATTRIBUTE(attribute_at)
    count = ctypes.c_int()
    if not query_devices(0, None, ctypes.byref(count)):
        return []
    devices = (ctypes.c_void_p * count.value)()
    if not query_devices(count.value, devices, ctypes.byref(count)):
        return []
    numbers: list[int | None] = []
    for device in devices[: count.value]:
        number = ctypes.c_ssize_t(-1)
        told = query_attribute(device, _CUDA_DEVICE, ctypes.byref(number))
        numbers.append(number.value if told and number.value >= 0 else None)
    return numbers
