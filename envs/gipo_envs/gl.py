"""Which OpenGL backend MuJoCo renders with on this machine, decided before anything is rendered.

``MUJOCO_GL`` is respected if it is set. Otherwise: EGL on an NVIDIA GPU (fastest), else OSMesa (software,
and what CPU-only machines and containers most easily have), else EGL in software.

Nothing here imports MuJoCo or opens a device: libraries are loaded and files looked at, which takes
milliseconds. So a trainer that wants pixels can find out before it starts workers.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from gipo_envs import egl_devices
from gipo_envs.errors import UserError

BACKENDS = ("egl", "osmesa", "glfw")
"""Values of ``MUJOCO_GL`` that can render off screen here (glfw needs a display)."""

_OSMESA_LIBRARIES = ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")
_VENDOR_DIRECTORIES = ("/etc/glvnd/egl_vendor.d", "/usr/share/glvnd/egl_vendor.d")
"""Where GLVND, the library behind ``libEGL.so.1``, looks for drivers."""


class Choice(NamedTuple):
    """A backend (one of ``BACKENDS``) and why it was chosen."""

    backend: str
    reason: str


def choose() -> Choice:
    """The backend to render with.

    Raises:
        UserError: none works, or the one that ``MUJOCO_GL`` names does not; says what to install.
    """
    requested = os.environ.get("MUJOCO_GL", "").strip().lower()
    if requested:
        return _requested(requested)
    if _nvidia_egl():
        if _mig() and _osmesa():
            return Choice("osmesa", "CUDA_VISIBLE_DEVICES names a MIG slice, and most of those do not draw")
        return Choice("egl", "an NVIDIA GPU with its EGL driver is there")
    if _osmesa():
        return Choice("osmesa", "no NVIDIA EGL driver; OSMesa renders in software")
    if _software_egl():
        return Choice("egl", "neither an NVIDIA EGL driver nor OSMesa; Mesa's EGL renders in software")
    raise UserError(
        "no OpenGL backend for images: install OSMesa (apt-get install libosmesa6), or on an NVIDIA machine "
        "libegl1 and the driver's graphics libraries (containers: NVIDIA_DRIVER_CAPABILITIES=all)"
    )


def context_class() -> Any:
    """MuJoCo's class of OpenGL contexts for the backend that ``choose`` returns.

    The class is imported from its own module, because ``mujoco.GLContext`` is fixed by the value that
    ``MUJOCO_GL`` had when MuJoCo was first imported.

    Raises:
        UserError: as ``choose``, or the backend's library fails to load.
    """
    backend, reason = choose()
    if backend == "egl" and (device := egl_devices.drawing_device()) is not None:
        os.environ["MUJOCO_EGL_DEVICE_ID"] = str(device)
    try:
        return importlib.import_module(f"mujoco.{backend}").GLContext
    except (ImportError, AttributeError, OSError) as error:
        raise UserError(
            f"OpenGL backend {backend} ({reason}) does not load: {error}; set MUJOCO_GL to another of "
            f"{', '.join(BACKENDS)}"
        ) from error


def _requested(backend: str) -> Choice:
    if backend not in BACKENDS:
        raise UserError(f"MUJOCO_GL={backend!r} cannot render images; use one of {', '.join(BACKENDS)}")
    if backend == "osmesa" and not _osmesa():
        raise UserError("MUJOCO_GL=osmesa, but libOSMesa does not load: apt-get install libosmesa6")
    if backend == "egl" and not (_nvidia_egl() or _software_egl()):
        raise UserError(
            "MUJOCO_GL=egl, but no EGL driver is there: apt-get install libegl1 libegl-mesa0, or the NVIDIA "
            "driver's graphics libraries (containers: NVIDIA_DRIVER_CAPABILITIES=all)"
        )
    if backend == "glfw" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UserError("MUJOCO_GL=glfw needs a display; unset it or use MUJOCO_GL=osmesa")
    return Choice(backend, "MUJOCO_GL says so")


def _nvidia_egl() -> bool:
    """Device, driver library and the file by which GLVND finds that driver are all there."""
    return (
        Path("/dev/nvidiactl").exists()
        and _loads("libEGL.so.1")
        and _loads("libEGL_nvidia.so.0")
        and any("libEGL_nvidia" in path.read_text() for path in _vendor_files())
    )


def _mig() -> bool:
    """This process computes on a slice of a GPU; only profiles +gfx draw (NVIDIA's MIG User Guide)."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").strip().startswith("MIG-")


def _software_egl() -> bool:
    return _loads("libEGL.so.1") and _loads("libEGL_mesa.so.0")


def _osmesa() -> bool:
    return any(_loads(name) for name in _OSMESA_LIBRARIES)


def _vendor_files() -> list[Path]:
    """GLVND's driver files; the two variables are its own."""
    if listed := os.environ.get("__EGL_VENDOR_LIBRARY_FILENAMES"):
        return [path for path in map(Path, listed.split(":")) if path.is_file()]
    directories = os.environ.get("__EGL_VENDOR_LIBRARY_DIRS")
    roots = directories.split(":") if directories else _VENDOR_DIRECTORIES
    return [path for root in roots for path in sorted(Path(root).glob("*.json"))]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
