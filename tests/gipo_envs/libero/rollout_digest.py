"""Prints a digest of everything that some LIBERO episodes show, for comparing processes."""

from __future__ import annotations

import hashlib

import numpy as np

from gipo_envs import EVALUATION_KEYS_START, CameraSettings, EnvironmentSettings, make

TASKS = (("libero_10", 0), ("libero_goal", 7), ("libero_object", 4))


def main() -> None:
    digest = hashlib.sha256()
    camera = CameraSettings(names=("agentview", "wrist"), height=64, width=64, quality="default")
    actions = np.random.default_rng(0).uniform(-1, 1, (16, 7)).astype(np.float32)
    for family, task in TASKS:
        settings = EnvironmentSettings(family, task, ("images", "proprio", "state"), camera, reward="sparse")
        environment = make(settings)
        for key in (3, EVALUATION_KEYS_START + 5):
            for observation in (environment.reset(key, 2), environment.step_chunk(actions).observation):
                for name in sorted(observation):
                    digest.update(observation[name].tobytes())
        environment.close()
    print(digest.hexdigest())


if __name__ == "__main__":
    main()
