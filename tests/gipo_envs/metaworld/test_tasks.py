"""The task lists are metaworld's."""

from __future__ import annotations

from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3, MT50_V3
from metaworld.sawyer_xyz_env import SawyerXYZEnv

from gipo_envs.metaworld import CAMERAS, FACTS
from gipo_envs.metaworld.simulation import TaskSimulation
from gipo_envs.metaworld.tasks import INSTRUCTIONS, MT10, MT50


def test_names_are_metaworlds() -> None:
    assert tuple(MT10_V3) == MT10
    assert tuple(MT50_V3) == tuple(ALL_V3_ENVIRONMENTS) == MT50


def test_every_task_has_its_own_instruction() -> None:
    assert tuple(INSTRUCTIONS) == MT50
    assert len(set(INSTRUCTIONS.values())) == 50
    for instruction in INSTRUCTIONS.values():
        assert instruction == instruction.strip().lower()
        assert 3 <= len(instruction.split()) <= 15
        assert not instruction.endswith(".")


def test_facts_are_metaworlds() -> None:
    assert FACTS.greatest_step_limit == SawyerXYZEnv.max_path_length
    assert FACTS.frames_per_second == SawyerXYZEnv.metadata["render_fps"]
    model = TaskSimulation("reach-v3").model
    assert {model.camera(index).name for index in range(model.ncam)} == set(CAMERAS) - {"overview"}
