"""Record what an environment shows under random actions, for ``env=recorded`` elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np

from gipo_envs import gl, needs_opengl, recorded
from gipo_envs.errors import UserError
from gipo_vla.assembly import environment_spec
from gipo_vla.benchmarks import Options
from gipo_vla.config import Config
from gipo_vla.rollout.episodes import TrainingEpisodes
from gipo_vla.rollout.pool import WorkerPool
from gipo_vla.telemetry.console import console


def run(settings: Config, options: Options) -> dict[str, Any]:
    """Write ``options.frames`` observations to the folder ``options.out``.

    Raises:
        UserError: there is no folder, or the environment cannot be made here.
    """
    if options.out is None:
        raise UserError("out is missing: give out=FOLDER for the recording")
    spec = environment_spec(settings)
    if needs_opengl(settings.env):
        gl.choose()
    rollout, frames = settings.rollout, options.frames
    episodes = TrainingEpisodes(spec, settings.seed, rollout.workers * rollout.envs_per_worker)
    rng = np.random.default_rng(settings.seed)
    seen: dict[str, list[np.ndarray]] = {name: [] for name in spec.observation if name != "task"}
    with WorkerPool(
        settings.env,
        spec,
        rollout.workers,
        rollout.envs_per_worker,
        settings.policy.chunk,
        episodes.following,
    ) as pool:
        pool.begin(episodes.first(range(pool.envs)))
        while sum(map(len, next(iter(seen.values())))) < frames:
            for name, parts in seen.items():
                parts.append(pool.arrays[f"observation/{name}"].copy())
            pool.dispatch(rng.uniform(-1, 1, pool.arrays["actions"].shape).astype(np.float32))
            pool.wait()
    arrays = {name: np.concatenate(parts)[:frames] for name, parts in seen.items()}
    recorded.write(options.out, spec, arrays)
    size = sum(array.nbytes for array in arrays.values())
    console.print(f"{frames} observations, {size / 2**20:.1f} MiB, are in {options.out}", soft_wrap=True)
    return {"folder": str(options.out), "frames": frames, "bytes": size}
