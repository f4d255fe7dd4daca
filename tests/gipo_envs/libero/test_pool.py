"""Three tasks in two workers: what a run asks of the pool, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from gipo_envs import CameraSettings, EnvironmentSettings, make_spec
from gipo_vla.rollout.episodes import TrainingEpisodes, evaluation_plans
from gipo_vla.rollout.pool import WorkerPool

CHUNK = 8


@pytest.mark.slow
def test_three_tasks(libero_assets: Path, pictures: None) -> None:
    settings = EnvironmentSettings(
        family="libero_spatial",
        task=(0, 1, 2),
        observations=("images", "proprio"),
        camera=CameraSettings(names=("agentview", "wrist"), height=84, width=84, format="rotated"),
        reward="sparse",
        step_limit=24,
    )
    spec = make_spec(settings)
    episodes = TrainingEpisodes(spec, seed=0, envs=4)
    rng = np.random.default_rng(0)

    def step(pool: WorkerPool) -> dict[str, np.ndarray]:
        pool.dispatch(rng.uniform(-1, 1, (4, CHUNK, 7)).astype(np.float32))
        assert len(pool.wait().slots) == 4
        return {name: array.copy() for name, array in pool.arrays.items() if "/" in name}

    def memory(pool: WorkerPool) -> float:
        return sum(psutil.Process(number).memory_info().rss for number in pool.process_ids) / 2**20

    with WorkerPool(settings, spec, 2, 2, CHUNK, episodes.following) as pool:
        assert not any("torch" in modules for modules in pool.modules())
        pool.begin(episodes.first(range(4)))
        tasks = {step(pool)["observation/task"].tobytes() for _ in range(12)}
        assert len(tasks) > 1  # episodes of three chunks: tasks change within the workers
        before = memory(pool)
        snapshot = pool.snapshot()
        state = rng.bit_generator.state
        expected = step(pool)
        with pool.borrowed(lambda plan: plan):  # an evaluation, in the middle of episodes
            pool.begin(evaluation_plans(spec, 2)[:4])
            step(pool)
        pool.restore(snapshot)
        rng.bit_generator.state = state
        actual = step(pool)
        for name in expected:
            np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
        for _ in range(12):
            step(pool)
        assert memory(pool) - before < 100
        assert pool.faults == 0
