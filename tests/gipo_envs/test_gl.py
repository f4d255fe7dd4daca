"""Which OpenGL backend is chosen where."""

from __future__ import annotations

from pathlib import Path

import pytest

from gipo_envs import UserError, gl

NVIDIA, OSMESA, SOFTWARE = "_nvidia_egl", "_osmesa", "_software_egl"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which nothing can render and MUJOCO_GL is not set."""
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for check in (NVIDIA, OSMESA, SOFTWARE):
        monkeypatch.setattr(gl, check, lambda: False)
    return monkeypatch


@pytest.mark.parametrize(
    ("available", "backend"),
    [
        ((NVIDIA, OSMESA, SOFTWARE), "egl"),
        ((OSMESA, SOFTWARE), "osmesa"),
        ((SOFTWARE,), "egl"),
    ],
)
def test_order(machine: pytest.MonkeyPatch, available: tuple[str, ...], backend: str) -> None:
    for check in available:
        machine.setattr(gl, check, lambda: True)
    choice = gl.choose()
    assert choice.backend == backend
    assert choice.reason


def test_a_mig_slice_is_not_drawn_on(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("CUDA_VISIBLE_DEVICES", "MIG-7d5a1b5e-1c1f-5e0e-9ad5-8a1f3b1d3c11")
    machine.setattr(gl, NVIDIA, lambda: True)
    assert gl.choose().backend == "egl"
    machine.setattr(gl, OSMESA, lambda: True)
    assert gl.choose().backend == "osmesa" and "MIG" in gl.choose().reason
    machine.setenv("MUJOCO_GL", "egl")
    assert gl.choose().backend == "egl"


def test_nothing_there(machine: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="apt-get install libosmesa6"):
        gl.choose()


def test_the_variable_is_respected(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(gl, NVIDIA, lambda: True)
    machine.setattr(gl, OSMESA, lambda: True)
    machine.setenv("MUJOCO_GL", " OSMesa ")
    assert gl.choose() == ("osmesa", "MUJOCO_GL says so")


@pytest.mark.parametrize(
    ("value", "message"),
    [("osmesa", "libosmesa6"), ("egl", "libegl1"), ("disabled", "cannot render"), ("glfw", "display")],
)
def test_the_variable_is_checked(machine: pytest.MonkeyPatch, value: str, message: str) -> None:
    machine.delenv("DISPLAY", raising=False)
    machine.delenv("WAYLAND_DISPLAY", raising=False)
    machine.setenv("MUJOCO_GL", value)
    with pytest.raises(UserError, match=message):
        gl.choose()


def test_vendor_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "10_nvidia.json"
    file.write_text('{"ICD": {"library_path": "libEGL_nvidia.so.0"}}')
    monkeypatch.delenv("__EGL_VENDOR_LIBRARY_FILENAMES", raising=False)
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_DIRS", f"/nowhere:{tmp_path}")
    assert gl._vendor_files() == [file]
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", f"{file}:/nowhere/else.json")
    assert gl._vendor_files() == [file]


def test_this_machine(pictures: None) -> None:
    assert gl.context_class() is not None
