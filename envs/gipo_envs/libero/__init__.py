"""LIBERO (130 manipulation tasks, Panda arm, robosuite 1.4 on MuJoCo) behind the environment protocol.

Five suites are five families: libero_spatial, libero_object, libero_goal, libero_10 and libero_90. Needs the
extra ``libero`` (``./scripts/setup.sh libero``) and assets (``gipo_envs.libero.assets``).

Actions (7,): displacement of the hand (+-1 is 5 cm), rotation of the hand (+-1 is 0.5 rad), gripper (-1
opens, +1 closes). Proprioception (8,): position, axis-angle, fingers. State: proprioception, then positions
and velocities of all joints, robot's and objects', with zeros up to the largest of the suite's tasks.
Landmarks: see ``gipo_envs.libero.landmarks``.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from gipo_envs import gl
from gipo_envs.benchmark import trial
from gipo_envs.errors import UserError
from gipo_envs.family import BareSimulator, Expert, Family, Probe, WorkerCost
from gipo_envs.libero import assets, catalogue, landmarks
from gipo_envs.protocol import (
    CameraSettings,
    Environment,
    EnvironmentSettings,
    EnvironmentSpec,
)
from gipo_envs.registry import register
from gipo_envs.settings import FamilyFacts, build_spec

SUITES = tuple(catalogue.STEP_LIMITS)
PROPRIO_SIZE = 8
CAMERAS = ("agentview", "wrist")
PROBE_STEPS = 50


def make_spec(settings: EnvironmentSettings) -> EnvironmentSpec:
    """See ``gipo_envs.registry.make_spec``.

    Raises:
        UserError: also if LIBERO is not installed or has no assets. The first time on a machine this
            downloads them.
    """
    if settings.reward != "sparse":
        raise UserError(f"reward is {settings.reward!r}, but LIBERO's tasks only tell success: use sparse")
    spec = build_spec(settings, _facts(settings.family))
    assets.find(settings.assets)
    return spec


def make(settings: EnvironmentSettings) -> Environment:
    """See ``gipo_envs.registry.make``."""
    spec = make_spec(settings)
    from gipo_envs.libero.environment import LiberoEnvironment  # imports robosuite

    tasks = tuple(catalogue.task(settings.family, name) for name in spec.tasks)
    return LiberoEnvironment(settings, spec, tasks, assets.find(settings.assets))


def _facts(suite: str) -> FamilyFacts:
    tasks = catalogue.tasks(suite)
    return FamilyFacts(
        instructions={task.name: task.instruction for task in tasks},
        cameras=CAMERAS,
        state_size=PROPRIO_SIZE + catalogue.STATE_SIZES[suite] - 1,  # the time is left out
        proprio_size=PROPRIO_SIZE,
        action_size=7,
        default_step_limit=catalogue.STEP_LIMITS[suite],
        frames_per_second=20.0,
        landmarks=landmarks.names(suite),
        evaluation_ends_on_success=True,
        published_states=catalogue.PUBLISHED_STATES,
    )


def make_bare_simulator(settings: EnvironmentSettings, spec: EnvironmentSpec, chunk: int) -> BareSimulator:
    """LIBERO's own environment, its cameras drawn once a chunk."""
    from gipo_envs.libero.benchmark import LiberoLoop

    return LiberoLoop(settings, spec, chunk)


def probe() -> str:
    """Make the first task of libero_spatial, step it and draw both cameras; returns how fast that was."""
    folder = assets.find(None, download=False)
    observations: tuple[Literal["images", "proprio"], ...] = ("images", "proprio")
    try:
        gl.choose()
    except UserError:
        observations = ("proprio",)
    camera = CameraSettings(names=("agentview", "wrist"), height=256, width=256, quality="default")
    settings = EnvironmentSettings("libero_spatial", 0, observations, camera, "sparse", assets=str(folder))
    return f"{trial(settings, PROBE_STEPS)}; assets in {folder}"


def _make_expert(suite: str, task: str) -> Expert:
    from gipo_envs.libero import experts  # imports scipy

    return experts.make_expert(suite, task)


FAMILIES = tuple(
    register(
        Family(
            suite,
            make_spec,
            make,
            WorkerCost(
                700_000_000,
                task=150_000_000,
                task_with_cameras=260_000_000,
                tasks_kept=10,
                env_step_seconds=9e-3,
                image_seconds=9e-2,
            ),
            make_expert=partial(_make_expert, suite),
            expert_observations=("proprio", "landmarks"),
            make_bare_simulator=make_bare_simulator,
            probe=Probe("libero", probe, "./scripts/setup.sh libero"),
            binary_gripper=True,
        )
    )
    for suite in SUITES
)
