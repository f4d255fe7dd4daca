"""Stable-Baselines3's PPO or SAC on a Meta-World task, judged as this project's runs are.

    PYTHONPATH=comparison_packages .venv/bin/python scripts/comparison/stable_baselines.py \
        --algorithm sac --task reach-v3 --seed 1 --env-steps 300000 --out reach-sac-1.json

The same simulator, step limit, held actions and dense reward as the default experiment; training draws
initial states from the training keys, and the policy at the end plays the held-out ones. Settings of the
algorithms are the defaults of the library; PPO sees and is rewarded through its VecNormalize, as in the
collection of settings tuned for it. The JSON has the names of evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

import gipo_envs
from gipo_envs import Environment, EnvironmentSettings

Act = Callable[[NDArray[np.float32], bool], NDArray[np.float32]]
"""Action (A,) for a state (S,), greedy or sampled."""


class GymEnvironment(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One of the project's environments as Gymnasium has them; a step holds its action ``action_repeat`` env
    steps.

    Args:
        seed: decides the initial states, which are those of training.
    """

    def __init__(self, environment: Environment, seed: int) -> None:
        self.environment = environment
        spec = environment.spec
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, spec.observation["state"].shape)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (spec.action_size,))
        self._keys = np.random.default_rng(seed)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        key = int(self._keys.integers(*self.environment.spec.training_keys))
        return self.environment.reset(key, seed=0)["state"], {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        result = self.environment.step_chunk(np.asarray(action, np.float32)[None])
        ends = result.terminated, result.truncated
        return result.observation["state"], float(result.rewards[0]), *ends, {}


def evaluate(environment: Environment, act: Act, episodes: int, greedy: bool) -> dict[str, Any]:
    """Rates over the first held-out initial states, as evaluation.json has them."""
    once, at_end, returns = [], [], []
    for index in range(episodes):
        seen = environment.reset(
            environment.spec.evaluation_keys[0] + index, seed=index, end_on_success=False
        )
        succeeded, total, over = False, 0.0, False
        while not over:
            result = environment.step_chunk(act(seen["state"], greedy)[None])
            seen, over = result.observation, result.terminated or result.truncated
            succeeded |= bool(result.success.any())
            total += float(result.rewards.sum())
        once.append(succeeded)
        at_end.append(result.success_at_end)
        returns.append(total)
    return {
        "episodes": episodes,
        "success_once": float(np.mean(once)),
        "success_at_end": float(np.mean(at_end)),
        "mean_return": float(np.mean(returns)),
    }


def train(algorithm: str, environment: Environment, seed: int, env_steps: int) -> Act:
    """Train for so many env steps; returns how the policy acts."""
    import stable_baselines3
    import torch
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    torch.set_num_threads(1)
    steps = env_steps // environment.spec.action_repeat
    made = DummyVecEnv([lambda: GymEnvironment(environment, seed)])
    if algorithm == "sac":
        model: Any = stable_baselines3.SAC("MlpPolicy", made, seed=seed, device="cpu").learn(steps)
        return lambda state, greedy: model.predict(state, deterministic=greedy)[0]
    normalized = VecNormalize(made, gamma=0.99)
    model = stable_baselines3.PPO("MlpPolicy", normalized, seed=seed, device="cpu").learn(steps)
    return lambda state, greedy: model.predict(normalized.normalize_obs(state), deterministic=greedy)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--algorithm", choices=("ppo", "sac"), required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--env-steps", type=int, default=300_000)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--step-limit", type=int, default=200)
    parser.add_argument("--action-repeat", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    environment = gipo_envs.make(
        EnvironmentSettings(
            "metaworld", given.task, step_limit=given.step_limit, action_repeat=given.action_repeat
        )
    )
    started = time.monotonic()
    act = train(given.algorithm, environment, given.seed, given.env_steps)
    seconds = time.monotonic() - started
    modes = {
        mode: evaluate(environment, act, given.episodes, mode == "greedy") for mode in ("sampled", "greedy")
    }
    facts = vars(given) | {"out": str(given.out), "training_seconds": round(seconds, 1)}
    given.out.write_text(
        json.dumps({"mode": "sampled", **modes["sampled"], "greedy": modes["greedy"], **facts})
    )
    print(given.out.read_text())


if __name__ == "__main__":
    main()
