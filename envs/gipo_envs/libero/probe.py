"""A quick trial of LIBERO on this machine."""

from __future__ import annotations

import time
from typing import Literal

import numpy as np

from gipo_envs import gl
from gipo_envs.errors import UserError
from gipo_envs.libero import assets
from gipo_envs.protocol import CameraSettings, EnvironmentSettings
from gipo_envs.registry import make

PROBE_STEPS = 50


def run() -> str:
    """Make the first task of libero_spatial, step it and draw both cameras; returns how fast that was."""
    folder = assets.find(None, download=False)
    observations: tuple[Literal["images", "proprio"], ...] = ("images", "proprio")
    try:
        gl.choose()
    except UserError:
        observations = ("proprio",)
    camera = CameraSettings(names=("agentview", "wrist"), height=256, width=256, quality="default")
    settings = EnvironmentSettings(
        "libero_spatial", 0, observations, camera, reward="sparse", assets=str(folder)
    )
    began = time.perf_counter()
    environment = make(settings)
    environment.reset(0, 0)
    made = time.perf_counter() - began
    began = time.perf_counter()
    environment.replay(np.zeros((PROBE_STEPS, 7), np.float32))
    rate = PROBE_STEPS / (time.perf_counter() - began)
    began = time.perf_counter()
    environment.observe()
    frames = f", two frames in {(time.perf_counter() - began) * 1e3:.0f} ms" if len(observations) > 1 else ""
    return f"libero_spatial 0 made in {made:.1f} s, {rate:,.0f} env steps a second{frames}; assets in {folder}"
