"""Digests of short episodes of Meta-World tasks; run as a program, it prints them as JSON.

python rollout_digests.py '["reach-v3", "push-v3"]'
"""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np

from gipo_envs import EVALUATION_KEYS_START, EnvironmentSettings, make


def rollout_digests(tasks: list[str]) -> dict[str, str]:
    """Task -> digest of all observations, rewards and successes of two episodes under random actions."""
    environment = make(
        EnvironmentSettings(family="metaworld", task=tuple(tasks), observations=("state", "proprio"))
    )
    actions = np.random.default_rng(5).uniform(-1, 1, (8, 5, 4)).astype(np.float32)
    digests = {}
    for index, name in enumerate(tasks):
        digest = hashlib.sha256()
        for key in (11, EVALUATION_KEYS_START + 11):
            observation = environment.reset(key, seed=0, task=index)
            for chunk in actions:
                digest.update(observation["state"].tobytes() + observation["proprio"].tobytes())
                result = environment.step_chunk(chunk)
                digest.update(result.rewards.tobytes() + result.success.tobytes())
                observation = result.observation
            digest.update(observation["state"].tobytes())
        digests[name] = digest.hexdigest()
    return digests


if __name__ == "__main__":
    json.dump(rollout_digests(json.loads(sys.argv[1])), sys.stdout)
