"""Meta-World v3 (50 manipulation tasks, Sawyer arm, MuJoCo) behind the environment protocol.

Actions (4,): hand displacement x, y, z in centimetres, and gripper effort (1 closes). State (39,): this
frame and the one before of hand position, gripper opening and two objects' poses, then the goal position.
Landmarks (13,): positions of hand, first object, second object (zeros where there is none) and goal, and the
gripper's opening, in metres.
"""

from __future__ import annotations

from gipo_envs.benchmark import trial
from gipo_envs.family import BareSimulator, Expert, Family, Probe, WorkerCost
from gipo_envs.metaworld.tasks import INSTRUCTIONS, TASK_GROUPS
from gipo_envs.protocol import Environment, EnvironmentSettings, EnvironmentSpec, Landmark, positions
from gipo_envs.registry import register
from gipo_envs.settings import FamilyFacts, build_spec

CAMERAS = ("overview", "corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")
"""``overview`` is ours, a free camera; the others are named in metaworld's models."""

PROBE_STEPS = 500

FACTS = FamilyFacts(
    instructions=INSTRUCTIONS,
    task_groups=TASK_GROUPS,
    cameras=CAMERAS,
    state_size=39,
    proprio_size=4,
    action_size=4,
    default_step_limit=500,
    # ``SawyerXYZEnv.max_path_length``: the horizon that success rates are published for.
    greatest_step_limit=500,
    # A dense reward lies in 0..10 a step. With a discount of 0.99 a policy that earns 0.5 to 5 a step has
    # a return of 50 to 500: this scale makes it 1 to 10.
    dense_reward_scale=0.02,
    frames_per_second=80.0,
    landmarks=(*positions("hand", "object", "second object", "goal"), Landmark("opening", "position")),
)


def make_spec(settings: EnvironmentSettings) -> EnvironmentSpec:
    """See ``gipo_envs.registry.make_spec``."""
    return build_spec(settings, FACTS)


def make(settings: EnvironmentSettings) -> Environment:
    """See ``gipo_envs.registry.make``."""
    spec = make_spec(settings)
    from gipo_envs.metaworld.environment import MetaWorldEnvironment  # imports MuJoCo

    return MetaWorldEnvironment(settings, spec)


def make_expert(task: str) -> Expert:
    """metaworld's own scripted policy for a task, with its output cut to the range of actions."""
    from gipo_envs.metaworld.library import expert  # imports MuJoCo

    return expert(task)


def make_bare_simulator(settings: EnvironmentSettings, spec: EnvironmentSpec, chunk: int) -> BareSimulator:
    """The task's own class of metaworld, without wrappers."""
    from gipo_envs.metaworld.library import bare_simulator

    return bare_simulator(spec.tasks[0])


def probe() -> str:
    """Make reach-v3 and step it; returns how fast that was."""
    return trial(EnvironmentSettings("metaworld", "reach-v3"), PROBE_STEPS)


FAMILY = register(
    Family(
        "metaworld",
        make_spec,
        make,
        WorkerCost(
            103_000_000,
            task=25_000_000,
            task_with_cameras=70_000_000,
            cameras=37_000_000,
            env_step_seconds=2e-4,
            image_seconds=4e-3,
        ),
        make_expert=make_expert,
        make_bare_simulator=make_bare_simulator,
        probe=Probe("metaworld", probe, "./scripts/setup.sh", needed=True),
    )
)
