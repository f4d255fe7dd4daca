"""The tasks of Meta-World v3 (metaworld 3.1) as data, so that settings are checked without MuJoCo.

Names, groups and their order are metaworld's own (``metaworld.env_dict``); a test compares them.
Yu et al. 2019, "Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning".
"""

from __future__ import annotations

from gipo_envs.metaworld.instructions import INSTRUCTIONS

MT50: tuple[str, ...] = tuple(INSTRUCTIONS)

MT10: tuple[str, ...] = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)

TASK_GROUPS: dict[str, tuple[str, ...]] = {"MT10": MT10, "MT50": MT50}
