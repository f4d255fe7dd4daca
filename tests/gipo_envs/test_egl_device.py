"""Which GPU a rank's simulator workers draw on."""

from __future__ import annotations

import pytest

from gipo_envs import gl


@pytest.mark.parametrize(
    ("gpus", "variables", "device"),
    [
        (8, {}, None),
        (8, {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None),
        (1, {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}, None),
        (8, {"LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "5"}, 5),
        (8, {"LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "4,5,6,7"}, 5),
        (8, {"LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "GPU-aa,GPU-bb"}, 1),
        (8, {"LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "5", "CUDA_VISIBLE_DEVICES": ""}, 5),
        (4, {"LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "5"}, 1),
        (8, {"LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "5", "MUJOCO_EGL_DEVICE_ID": "2"}, None),
    ],
)
def test_the_ranks_gpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int, variables: dict[str, str], device: int | None
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "MUJOCO_EGL_DEVICE_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(gl, "_nvidia_gpus", lambda: gpus)
    assert gl.egl_device() == device
