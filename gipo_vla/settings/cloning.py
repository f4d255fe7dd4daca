"""The settings of a cloning run (``python -m gipo_vla.sft``), beside those that it shares with training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from gipo_envs.errors import UserError
from gipo_vla.settings.schema import (
    AnyRunSettings,
    DemonstrationsSection,
    FinalEvaluationSettings,
    NonNegative,
    OptimizerSettings,
    Positive,
    Share,
    SimulationSettings,
    TelemetrySettings,
)


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
class CloningLearnerSettings(OptimizerSettings):
    """How the policy is updated."""

    movable: ClassVar[tuple[str, ...]] = ("threads", "deterministic", "collective_timeout_s")

    warmup_steps: NonNegative = 20
    """Updates over which the learning rate rises linearly from 0."""
    schedule: Literal["cosine", "constant"] = "cosine"


@dataclass(frozen=True, kw_only=True)
class SftSettings(AnyRunSettings):
    """A whole cloning run."""

    fixed: ClassVar[tuple[str, ...]] = (
        *("env", "policy", "demonstrations", "sft", "learner", "experiment", "seed", "init_from"),
    )

    demonstrations: DemonstrationsSection
    sft: CloningSettings = field(default_factory=CloningSettings)
    learner: CloningLearnerSettings = field(default_factory=CloningLearnerSettings)
    rollout: SimulationSettings = field(default_factory=SimulationSettings)
    eval: FinalEvaluationSettings = field(default_factory=FinalEvaluationSettings)
    telemetry: TelemetrySettings = field(default_factory=lambda: TelemetrySettings(log_every=5))

    def __post_init__(self) -> None:
        if self.sft.settled_after is not None and self.sft.validation_share == 0:
            raise UserError(
                f"sft.settled_after is {self.sft.settled_after} with sft.validation_share 0: there is no "
                "held-out loss to settle; hold out a share, or set sft.settled_after to null"
            )
