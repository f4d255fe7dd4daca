"""The GPU that a process draws on, where EGL counts GPUs in another order than CUDA.

The library that is asked is a stub (stub_egl.c): CUDA counts the GPUs a, b, c, d, EGL counts c, a device of
Mesa's, a, d, b. No GPU is needed, and none was.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gipo_envs import UserError, egl_devices, gl
from gipo_vla.sweeping.process import environment, gpus, gpus_of
from tests.conftest import which

EGL_ORDER = "c-adb"
VARIABLES = ("LOCAL_WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "MUJOCO_EGL_DEVICE_ID")


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = which("cc")
    if compiler is None:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("these tests compile a small library: install a C compiler (cc)")
    library = tmp_path_factory.mktemp("egl") / "libEGL.so.1"
    source = Path(__file__).with_name("stub_egl.c")
    subprocess.run([str(compiler), "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return str(library)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, stub: str) -> pytest.MonkeyPatch:
    """A node with the stub's four GPUs; no variable is set."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(egl_devices, "_LIBRARY", stub)
    return monkeypatch


def drawn_on() -> str | None:
    """The letter of the GPU that this process draws on."""
    device = egl_devices.drawing_device()
    return None if device is None else EGL_ORDER[device]


@pytest.mark.parametrize(
    ("visible", "gpus_of_ranks"),
    [
        (None, "abcd"),
        ("3,1,0,2", "dbac"),
        ("2,3", "cd"),
        ("GPU-d,GPU-b", "db"),
        ("MIG-d1", "d"),
        ("1", "b"),
    ],
)
def test_every_rank_draws_on_the_gpu_that_it_computes_on(
    node: pytest.MonkeyPatch, visible: str | None, gpus_of_ranks: str
) -> None:
    if visible is not None:
        node.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert drawn_on() == gpus_of_ranks[0]  # a plain process
    node.setenv("LOCAL_WORLD_SIZE", str(len(gpus_of_ranks)))
    for rank, gpu in enumerate(gpus_of_ranks):
        node.setenv("LOCAL_RANK", str(rank))
        assert drawn_on() == gpu


def test_the_jobs_of_a_sweep_draw_on_their_own_gpus(node: pytest.MonkeyPatch) -> None:
    node.setenv("CUDA_VISIBLE_DEVICES", "GPU-b,GPU-d,GPU-a")
    available = gpus()
    for slot, gpu in enumerate("bdab"):
        job = environment(1, gpus_of(slot, 1, available))
        node.setenv("CUDA_VISIBLE_DEVICES", job["CUDA_VISIBLE_DEVICES"])
        assert drawn_on() == gpu


def test_ranks_on_the_cpu_take_turns(node: pytest.MonkeyPatch) -> None:
    node.setenv("LOCAL_RANK", "6")
    assert drawn_on() == "c"


def test_the_variable_decides(node: pytest.MonkeyPatch) -> None:
    node.setenv("MUJOCO_EGL_DEVICE_ID", "3")
    node.setenv("LOCAL_RANK", "1")
    assert drawn_on() == "d"
    node.setenv("MUJOCO_EGL_DEVICE_ID", "GPU-a")
    with pytest.raises(UserError, match="in EGL's order"):
        egl_devices.drawing_device()


def test_without_an_answer_mujoco_chooses(node: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node.setenv("CUDA_VISIBLE_DEVICES", "")
    assert egl_devices.cuda_numbers() == [None] * 5 and drawn_on() is None
    assert egl_devices.cuda_numbers(str(tmp_path / "libEGL.so.1")) == []
    assert egl_devices.cuda_numbers("libc.so.6") == []


def test_mujoco_is_told(node: pytest.MonkeyPatch) -> None:
    node.setenv("LOCAL_RANK", "2")
    node.setattr(gl, "choose", lambda: gl.Choice("egl", "a test says so"))
    node.setitem(sys.modules, "mujoco.egl", SimpleNamespace(GLContext="a class"))
    node.setattr(os, "environ", dict(os.environ))  # what is set here goes when the test ends
    assert gl.context_class() == "a class"
    assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "0"
