"""Settings of a cloning run (configs/sft.yaml), and of a run folder of either kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from gipo_envs import EnvironmentSettings
from gipo_envs.errors import UserError
from gipo_vla import config
from gipo_vla.composing import compose_yaml
from gipo_vla.config import (
    CheckpointSettings,
    Config,
    NonNegative,
    PolicySettings,
    Positive,
    PositiveFloat,
    TelemetrySettings,
)

Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class StateRange:
    """Initial states whose observed state lies within bounds in one dimension."""

    index: NonNegative
    """Into ``Observation["state"]`` (Meta-World: 4, 5 and 6 are where the first object is, in metres)."""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ExpertSettings:
    """Record the environment's scripted experts in its simulator."""

    name: Literal["experts"] = "experts"
    count: Positive = 20
    """Successful episodes kept of each task."""
    action_noise: Annotated[float, Field(ge=0)] = 0.2
    """Standard deviation of the noise added to the executed actions (whose range is -1 to 1), so that the
    demonstrations also show how to come back. What is cloned is the expert's own action."""
    initial_states: Positive | None = None
    """Only so many different initial states a task, used in turn. None: a new one for every attempt."""
    state_range: StateRange | None = None
    """Only initial states within these bounds: demonstrations of a part of the task."""
    steps_after_success: NonNegative = 10
    """Actions recorded after the first success."""
    observe_every: Positive = 1
    """Actions between two recorded observations, each of which is an example."""
    max_attempts: Positive = 1000
    """Attempts at one task after which recording is given up."""


@dataclass(frozen=True)
class RecordedSettings:
    """Read what another run of sft recorded."""

    path: str
    """Its run folder, or the demonstrations/ in it."""
    name: Literal["recorded"] = "recorded"
    count: Positive | None = None
    """Episodes taken of each task, the first ones; None: all."""


@dataclass(frozen=True)
class LiberoHdf5Settings:
    """Read LIBERO's published demonstrations: a folder of ``<task>_demo.hdf5``."""

    path: str
    name: Literal["libero_hdf5"] = "libero_hdf5"
    count: Positive | None = None
    drop_no_ops: bool = True
    """Leave out actions that move nothing, as the data of the published checkpoints does."""
    rotate_images: bool = False
    """Turn images by 180 degrees to how the simulator renders them. The published files hold them as
    rendered."""


@dataclass(frozen=True)
class LeRobotSettings:
    """Read a LeRobot data set's folder, of format 2 or 3."""

    path: str
    images: tuple[str, ...]
    """Features to take as the environment's cameras, in their order."""
    name: Literal["lerobot"] = "lerobot"
    count: Positive | None = None
    proprio: str | None = "observation.state"
    actions: str = "action"
    drop_no_ops: bool = True
    rotate_images: bool = False
    """Turn images by 180 degrees to how the simulator renders them: true for upright data sets of LIBERO."""


DemonstrationSettings = Annotated[
    ExpertSettings | RecordedSettings | LiberoHdf5Settings | LeRobotSettings, Field(discriminator="name")
]


@dataclass(frozen=True)
class CloningSettings:
    """How long is cloned, from what, and when it is enough."""

    steps: Positive
    """Updates, at most."""
    batch_size: Positive
    """Examples (an observation and the chunk of actions that follows) in one update, over all ranks."""
    micro_batch_size: Positive
    """Examples in one forward of one rank, at most: its share of a batch is cut by this as evenly as
    possible."""
    steps_per_iteration: Positive
    """Updates between two lines in metrics.jsonl, each with the loss on held-out demonstrations."""
    validation_share: Share = 0.1
    """Share of each task's episodes held out from training. 0: none."""
    settled_after: Positive | None = None
    """Stop when the held-out loss has not fallen for so many iterations. None: make all the steps."""
    settled_tolerance: Share = 0.01
    """What counts as falling: below the least so far by this share of it."""


@dataclass(frozen=True)
class CloningLearnerSettings:
    """How the policy is updated; as in training, of which ``LearnerSettings`` has the explanations."""

    policy_learning_rate: PositiveFloat
    warmup_steps: NonNegative = 20
    schedule: Literal["cosine", "constant"] = "cosine"
    final_learning_rate_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    policy_gradient_clip: PositiveFloat = 1.0
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    adam_epsilon: PositiveFloat = 1e-8
    max_nonfinite_updates: Positive = 10
    zero_stage: Literal["auto", 1, 2] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: Positive = 1


@dataclass(frozen=True)
class SimulationSettings:
    """Simulator workers for recording and evaluating."""

    workers: Positive
    envs_per_worker: Positive
    """In evaluation; a worker records one episode at a time."""
    temperature: PositiveFloat = 1.0
    """Of the sampled evaluation."""
    worker_timeout_s: PositiveFloat = 120.0


@dataclass(frozen=True)
class FinalEvaluationSettings:
    """Episodes at the end, on initial states that no demonstration begins with."""

    episodes_per_task: Positive = 50
    mode: Literal["greedy", "sampled"] = "greedy"
    video: bool = True
    video_episodes: Positive = 4


@dataclass(frozen=True)
class SftConfig:
    """A whole cloning run."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    experiment: str
    env: EnvironmentSettings
    policy: PolicySettings
    demonstrations: DemonstrationSettings
    sft: CloningSettings
    learner: CloningLearnerSettings
    rollout: SimulationSettings
    eval: FinalEvaluationSettings = field(default_factory=FinalEvaluationSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    seed: NonNegative = 0
    run_dir: str | None = None
    """None: runs/<experiment>-<date>."""
    resume: str | None = None
    """A cloning run's folder to continue."""
    init_from: str | None = None
    """A run folder (of sft or train), or one of its checkpoints, whose policy this run starts from."""

    def __post_init__(self) -> None:
        if self.sft.settled_after is not None and self.sft.validation_share == 0:
            raise UserError(
                f"sft.settled_after is {self.sft.settled_after} with sft.validation_share 0: there is no "
                "held-out loss to settle; hold out a share, or set sft.settled_after to null"
            )


AnyRun = Config | SftConfig
"""Settings of a run folder."""


def load(overrides: Sequence[str]) -> SftConfig:
    """Compose and check: what the arguments of ``python -m gipo_vla.sft`` mean."""
    values = compose_yaml("sft", overrides)
    if "iterations" in values:
        raise UserError(
            f"experiment={values.experiment} belongs to python -m gipo_vla.train: sft takes those whose name "
            "ends with _sft"
        )
    return config.typed(values, SftConfig)


def read_run(path: Path) -> AnyRun:
    """A run folder's config.yaml, whichever command wrote it."""
    values = config.read_yaml(path)
    return config.typed(values, SftConfig) if "sft" in values else config.from_dict(values)
