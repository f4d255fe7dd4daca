"""The settings of a cloning run (``python -m gipo_vla.sft``), beside those that it shares with training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, PlainValidator

from gipo_envs import EnvironmentSettings
from gipo_envs.errors import UserError
from gipo_vla.settings import registry
from gipo_vla.settings.schema import (
    CheckpointSettings,
    NonNegative,
    PolicySection,
    Positive,
    PositiveFloat,
    Share,
    TelemetrySettings,
)

DemonstrationsSection = Annotated[Any, PlainValidator(registry.demonstrations.validate)]


@dataclass(frozen=True)
class CloningSettings:
    """How long is cloned, from what, and when it is enough."""

    movable: ClassVar[tuple[str, ...]] = ("steps", "settled_after", "settled_tolerance")

    steps: Positive = 800
    """Updates, at most."""
    batch_size: Positive = 32
    """Examples (an observation and the chunk of actions that follows) in one update, over all ranks."""
    micro_batch_size: Positive = 32
    """Examples in one forward of one rank, at most: its share of a batch is cut by this as evenly as
    possible."""
    steps_per_iteration: Positive = 20
    """Updates between two lines in metrics.jsonl, each with the loss on held-out demonstrations."""
    validation_share: Share = 0.1
    """Share of each task's episodes held out from training. 0: none."""
    settled_after: Positive | None = None
    """Stop when the held-out loss has not fallen for so many iterations. None: make all the steps."""
    settled_tolerance: Share = 0.01
    """What counts as falling: below the least so far by this share of it."""


@dataclass(frozen=True)
class CloningLearnerSettings:
    """How the policy is updated: as in training, whose ``LearnerSettings`` has the explanations."""

    movable: ClassVar[tuple[str, ...]] = ("threads", "deterministic")

    policy_learning_rate: PositiveFloat = 1e-3
    """AdamW's rate."""
    warmup_steps: NonNegative = 20
    """Updates over which the learning rate rises linearly from 0."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """cosine lets the learning rate fall to ``final_learning_rate_fraction`` by the last update."""
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
    deterministic: bool = False


@dataclass(frozen=True)
class SimulationSettings:
    """Simulator workers for recording and evaluating."""

    workers: Positive = 2
    """Processes a rank."""
    envs_per_worker: Positive = 8
    """In evaluation; a worker records one episode at a time."""
    temperature: PositiveFloat = 1.0
    """Divides the logits in the sampled evaluation."""
    worker_timeout_s: PositiveFloat = 120.0
    """A worker that answers nothing for this long counts as hung, and is replaced."""


@dataclass(frozen=True)
class FinalEvaluationSettings:
    """Episodes at the end, on initial states that no demonstration begins with."""

    episodes_per_task: Positive = 50
    """Held-out initial states of each task."""
    mode: Literal["greedy", "sampled"] = "greedy"
    """The mode of the headline in evaluation.json; the other is reported beside it."""
    video: bool = True
    """Write a video of some evaluated episodes."""
    video_episodes: Positive = 4
    """Episodes in the video."""


@dataclass(frozen=True)
class SftSettings:
    """A whole cloning run."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    fixed: ClassVar[tuple[str, ...]] = (
        "env",
        "policy",
        "demonstrations",
        "sft",
        "learner",
        "experiment",
        "seed",
        "init_from",
    )

    env: EnvironmentSettings
    policy: PolicySection
    demonstrations: DemonstrationsSection
    experiment: str = "unnamed"
    """Name of the experiment; run folders begin with it."""
    seed: NonNegative = 0
    """Where every random draw of the run comes from."""
    sft: CloningSettings = field(default_factory=CloningSettings)
    learner: CloningLearnerSettings = field(default_factory=CloningLearnerSettings)
    rollout: SimulationSettings = field(default_factory=SimulationSettings)
    eval: FinalEvaluationSettings = field(default_factory=FinalEvaluationSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    telemetry: TelemetrySettings = field(default_factory=lambda: TelemetrySettings(log_every=5))
    run_dir: str | None = None
    """The run's folder. None: runs/<experiment>-<date>-<time>."""
    resume: str | None = None
    """A cloning run's folder to resume. auto: resume ``run_dir`` if it holds a run of the same settings."""
    stop_after: Positive | None = None
    """End this session after so many iterations of the run, with a checkpoint."""
    init_from: str | None = None
    """A run folder (of sft or train), or one of its checkpoints, whose policy this run starts from."""
    plugins: tuple[str, ...] = ()
    """Modules of your own that register policies or simulators."""

    def __post_init__(self) -> None:
        if self.sft.settled_after is not None and self.sft.validation_share == 0:
            raise UserError(
                f"sft.settled_after is {self.sft.settled_after} with sft.validation_share 0: there is no "
                "held-out loss to settle; hold out a share, or set sft.settled_after to null"
            )
