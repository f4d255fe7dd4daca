"""The settings of a training run, section by section.

Sections that choose between classes (objective, credit, policy) are validated by their registry. ``fixed``
and ``movable`` say what a resumed run may change (``gipo_vla.settings.runs.may_change``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator

from gipo_envs import EnvironmentSettings
from gipo_envs.errors import UserError
from gipo_vla.settings import registry

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]

# Settings of a registered class: any of those in the registry.
ObjectiveSection = Annotated[Any, PlainValidator(registry.objectives.validate)]
CreditSection = Annotated[Any, PlainValidator(registry.credits.validate)]
PolicySection = Annotated[Any, PlainValidator(registry.policies.validate)]
DemonstrationsSection = Annotated[Any, PlainValidator(registry.demonstrations.validate)]
OptionalDemonstrationsSection = Annotated[
    Any, PlainValidator(lambda value: None if value is None else registry.demonstrations.validate(value))
]

KlEstimator = Literal["k3", "exact"]


@dataclass(frozen=True)
class RegularizerSettings:
    """Weights of what is added to the objective; a weight of 0 costs nothing."""

    entropy_coefficient: float = 0.0
    """Raise (0.001 to 0.01) where the policy stops exploring before it succeeds."""
    final_entropy_fraction: float = 1.0
    """What is left of the entropy coefficient at the end of ``learner.schedule_iterations``, as a share; it
    falls in a straight line. 0 lets the policy commit itself in the end."""
    kl_behaviour_coefficient: float = 0.0
    """Holds the learner near the policies that acted. GIPO's reference code uses 0.1 (exact); raise it
    where the log-ratios of fresh samples run away within one iteration."""
    kl_behaviour: KlEstimator = "k3"
    """k3 needs only the stored log-probs. exact has no sampling noise, but stores bins float16 logits a
    token: for small policies only."""
    kl_reference_coefficient: float = 0.0
    """Holds the learner near its initial weights, where a cloned policy must not be forgotten. Costs one
    more forward of the frozen reference."""
    kl_reference: KlEstimator = "k3"
    """k3 needs the reference's log-probs, exact its logits."""

    def __post_init__(self) -> None:
        for key in ("entropy_coefficient", "kl_behaviour_coefficient", "kl_reference_coefficient"):
            value = getattr(self, key)
            if not 0 <= value < float("inf"):
                raise UserError(
                    f"regularizers.{key} is {value}: it must be 0 (off) or above; 0.001 to 0.1 is usual"
                )
        share = self.final_entropy_fraction
        if not 0 <= share <= 1:
            raise UserError(f"regularizers.final_entropy_fraction is {share}: it must be from 0 to 1")
        for key in ("kl_behaviour", "kl_reference"):
            if getattr(self, key) not in ("k3", "exact"):
                raise UserError(f"regularizers.{key} is {getattr(self, key)}: it must be k3 or exact")


@dataclass(frozen=True)
class ReplaySettings:
    """The ring of segments. Its size is what sets the staleness of the data."""

    fixed: ClassVar[tuple[str, ...]] = ("segment_length", "cache_features")

    capacity: Positive = 20_000
    """Transitions kept, over all ranks; the oldest leave first."""
    segment_length: Positive = 32
    """L: consecutive transitions of one episode that are stored, sampled and trained on together."""
    max_lag: Positive | None = None
    """Segments acted by a policy more than this many updates old are not drawn. None: no limit."""
    memory_limit_gb: PositiveFloat = 8.0
    """Host memory for one rank's shard; slots beyond it evict the oldest segment early."""
    cache_features: bool = False
    """Keep what a policy's frozen vision towers make of images beside these, and train without the towers:
    4 % of the learner's time for seven times the memory (1.1 MB an image of the 7B). Only where no adapter
    trains them."""
    sampler: Literal["uniform", "recency"] = "uniform"
    """uniform: every drawable segment alike. recency: newer segments more often."""
    recency_half_life: PositiveFloat = 0.25
    """sampler=recency: the weight of a segment halves every this fraction of the segments held."""
    demonstration_share: Share = 0.0
    """Demonstrated decisions beside every batch, as a share of its learner.batch_segments x segment_length
    transitions, to be cloned while the rest is reinforced: where successes are rare. 0.1 is usual; needs
    ``demonstrations``. 0: none."""
    demonstration_coefficient: PositiveFloat = 0.1
    """Weight of the cloning loss, a mean over the demonstrated tokens, beside the objective's."""


@dataclass(frozen=True)
class SimulationSettings:
    """Simulator workers; what a cloning run records and evaluates with."""

    workers: Positive = 2
    """Simulator processes a rank."""
    envs_per_worker: Positive = 8
    """Environments of each worker; one that records demonstrations plays a single episode at a time."""
    temperature: PositiveFloat = 1.0
    """Divides the logits when actions are sampled; training stores it with every transition."""
    worker_timeout_s: Annotated[float, Field(gt=0, le=1e6)] = 120.0
    """A worker that answers nothing for this long counts as hung, and is replaced."""

    @property
    def envs(self) -> int:
        """Environments of a rank."""
        return self.workers * self.envs_per_worker


@dataclass(frozen=True)
class RolloutSettings(SimulationSettings):
    """How experience is collected."""

    fixed: ClassVar[tuple[str, ...]] = ("group_size",)

    envs_per_worker: Positive = 16
    env_steps: Positive = 3200
    """Env steps that an iteration collects, over all ranks (rounded up to whole vector steps)."""
    collect: Literal["all", "ready"] = "all"
    """all: every environment steps in lockstep, reproducible to the bit. ready: whatever has arrived is
    served, so no straggler holds up the rest, and runs are no longer reproducible."""
    sync_every: Positive = 1
    """Updates between two copies of the learner's weights to the behaviour policy."""
    stagger: bool = True
    """Spread the ends of the first episodes, so that resets do not all fall into the same vector step."""
    group_size: Positive = 1
    """Episodes that share one task and initial state, for group-relative credits (8 is usual there)."""
    group_filter: Literal["none", "contrast"] = "none"
    """contrast: groups whose outcomes (``credit.outcome``) are all equal are left out of the replay, and as
    many transitions are collected in their place, without training meanwhile (dynamic sampling). Where most
    groups fail or succeed altogether; with dense rewards choose ``credit.outcome=success_once``."""
    group_filter_rounds: Positive = 4
    """group_filter=contrast: rounds of at most ``env_steps`` in which an iteration replaces what it left out;
    after them the run continues with what the replay has."""
    task_sampling: Literal["uniform", "success"] = "uniform"
    """How the task of an episode is drawn. success: hard tasks more often, by the failures of each one's last
    episodes (the formula is in ``rollout/task_sampler.py``)."""
    task_sampling_floor: Annotated[float, Field(gt=0, le=1)] = 0.2
    """task_sampling=success: share of the draws that is spread evenly, so that no task is forgotten."""
    max_worker_faults: NonNegative = 10
    """Replaced workers of one rank that are tolerated within ``worker_fault_window``; beyond that the run
    saves a checkpoint and stops."""
    worker_fault_window: Positive = 20
    """Iterations."""
    max_collection_rounds: Positive = 50
    """Rounds of extra collection, when too little may be drawn, after which the run stops."""


@dataclass(frozen=True)
class OptimizerSettings:
    """What training and cloning share of their updates."""

    policy_learning_rate: PositiveFloat = 1e-3
    """AdamW's rate for the policy's parameters."""
    schedule: Literal["cosine", "constant"] = "constant"
    """constant keeps the learning rates after their warm-up. cosine lets them fall to
    ``final_learning_rate_fraction`` by the end of the schedule."""
    final_learning_rate_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """What is left of the learning rates at the end of schedule=cosine, as a share."""
    policy_gradient_clip: PositiveFloat = 1.0
    """Largest norm of the policy's gradient; a larger one is scaled down to it."""
    adam_beta1: Share = 0.9
    """Decay of AdamW's mean of gradients."""
    adam_beta2: Share = 0.999
    """Decay of AdamW's mean of squared gradients."""
    adam_epsilon: PositiveFloat = 1e-8
    """What AdamW adds to the root of the squares."""
    max_nonfinite_updates: Positive = 10
    """Updates in a row that may be skipped for a loss or gradient that is not finite."""
    zero_stage: Literal["auto", 1, 2] = "auto"
    """DeepSpeed's ZeRO stage; auto: 1 on CPU, 2 on GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where learner and behaviour policy live; auto: a GPU where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What a vision-language-action network computes in; auto: bfloat16 on GPU, float32 on CPU. Heads,
    log-probs and small policies are float32 always."""
    threads: Annotated[int, Field(gt=0, le=1024)] = 1
    """Torch's CPU threads a rank. More than one beside busy simulator workers is slower, not faster."""
    collective_timeout_s: Annotated[float, Field(gt=0, le=1e6)] = 1800.0
    """Seconds that a rank waits for the others before it counts them as lost and the run ends. More than
    the slowest rank may need for its rollout."""
    deterministic: bool = False
    """On a GPU: only kernels that give the same bits twice, which are slower (docs/resume.md says what is
    promised). A CPU gives the same bits without it."""


@dataclass(frozen=True)
class LearnerSettings(OptimizerSettings):
    """How the policy is updated."""

    updates: Positive = 12
    """Updates an iteration."""
    batch_segments: Positive = 32
    """Segments in one global batch, over all ranks."""
    micro_batch_segments: Positive = 32
    """Segments in one forward of one rank, at most: its share of a batch is cut by this as evenly as
    possible."""
    micro_batch_rows: Positive | Literal["auto"] | None = None
    """In place of ``micro_batch_segments``: transitions in one forward, at most. The cut is then the one in
    which they are most even (the last segment of an episode is short). auto: as many as the plan says that a
    GPU's memory holds; other cards then cut in other places, and round otherwise."""
    reuse_values: bool = False
    """Take the value of what follows a segment from the forward that trains on the episode's next one, where
    that is in the same batch, instead of from a forward of its own. A batch is then trained on from the ends
    of its episodes to their beginnings. Worth it where batches are a large part of the replay."""
    value_learning_rate: PositiveFloat = 1e-3
    """AdamW's rate for the value's parameters."""
    warmup_iterations: NonNegative = 0
    """The learning rates rise linearly from 0 over this many iterations."""
    schedule_iterations: Positive | None = None
    """Where schedule=cosine ends. None: ``iterations``."""
    value_only_updates: NonNegative = 0
    """The first updates train the value alone (a policy that can already do something is worth more than
    the advantages of an untrained value)."""
    policy_every: Positive = 1
    """The policy's gradient is taken only in every n-th update; the value is trained in all of them. Every
    update makes a version, so lags in updates count all, and the policy's own are an n-th of it."""
    value_gradient_clip: PositiveFloat = 1.0
    """Largest norm of the value's gradient."""
    value_loss_coefficient: PositiveFloat = 1.0
    """Weight of the value loss beside the policy loss."""
    huber_delta: PositiveFloat = 1.0
    """Value errors beyond this (in scaled return, or in units of ``value_scale``) count linearly."""
    value_scale: Literal["none", "running"] = "none"
    """running: what the value network gives is multiplied by the root mean square of recent targets, and its
    errors are measured in it. Where returns are far from 1, or grow a lot, and ``env.reward_scale`` stays."""

    def check_credit(self, needs_values: bool, stored_values: bool) -> None:
        """Raise UserError where a credit with, or without, such values cannot go with these settings."""
        if self.policy_every > 1 and not needs_values:
            raise UserError(
                f"learner.policy_every is {self.policy_every}, but this credit trains no value: the "
                "other updates would train nothing; set it to 1, or choose credit=gae"
            )
        if self.value_scale != "none" and stored_values:
            raise UserError(
                "learner.value_scale=running changes what the value network's numbers mean, so that those of "
                "other times cannot be used: set credit.values=recomputed, or learner.value_scale=none"
            )


@dataclass(frozen=True)
class FinalEvaluationSettings:
    """Episodes at the end, on initial states that nothing was trained on."""

    episodes_per_task: Positive = 50
    """Held-out initial states of each task in the evaluation at the end, the same for every policy."""
    mode: Literal["greedy", "sampled"] = "greedy"
    """The mode of the headline in evaluation.json; the other is reported beside it."""
    video: bool = True
    """Write a video of some evaluated episodes."""
    video_episodes: Positive = 4
    """Episodes in the video."""


@dataclass(frozen=True)
class EvaluationSettings(FinalEvaluationSettings):
    """Episodes on initial states that training never draws, at the end and under way."""

    every_env_steps: Positive | None = None
    """Also evaluate during training, for the learning curve. None: only at the end."""
    during_training_episodes_per_task: Positive = 20
    """Held-out initial states of each task in an evaluation during training."""


@dataclass(frozen=True)
class CheckpointSettings:
    every_iterations: Positive | None = None
    """None: only at the end."""
    keep: Positive = 2
    """Newest checkpoints kept."""
    keep_every: Positive | None = None
    """Also keep every n-th of the checkpoints of ``every_iterations``, for later evaluations."""


@dataclass(frozen=True)
class TelemetrySettings:
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """Where metrics also go: auto is online with an API key, else offline."""
    wandb_project: str = "gipo_vla"
    """Project of the runs at Weights & Biases."""
    report: bool = True
    """Write report.html at the end (two seconds)."""
    log_every: Positive = 10
    """Iterations between two lines to wandb and, without a terminal, to the console. metrics.jsonl always
    has every iteration."""


@dataclass(frozen=True, kw_only=True)
class AnyRunSettings:
    """What the settings of a training run and of a cloning run share."""

    env: EnvironmentSettings
    policy: PolicySection
    experiment: str = "unnamed"
    """Name of the experiment; run folders begin with it."""
    seed: NonNegative = 0
    """Where every random draw of the run comes from."""
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    stop_after: Positive | None = None
    """End this session after so many iterations of the run, with a checkpoint."""
    run_dir: str | None = None
    """The run's folder. None: runs/<experiment>-<date>-<time>."""
    resume: str | None = None
    """A run folder to resume. auto: resume ``run_dir`` if it holds a run of the same settings."""
    init_from: str | None = None
    """A run folder (of sft or train), or one of its checkpoints, whose policy this run starts from."""
    plugins: tuple[str, ...] = ()
    """Modules of your own that register objectives, credits, scorers, policies or simulators."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(AnyRunSettings):
    """A whole training run."""

    fixed: ClassVar[tuple[str, ...]] = ("env", "policy", "seed", "init_from", "demonstrations")

    objective: ObjectiveSection
    credit: CreditSection
    iterations: Positive = 100
    """Iterations of the run: each collects ``rollout.env_steps`` and makes ``learner.updates``."""
    regularizers: RegularizerSettings = field(default_factory=RegularizerSettings)
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    eval: EvaluationSettings = field(default_factory=EvaluationSettings)
    demonstrations: OptionalDemonstrationsSection = None

    @property
    def batch_transitions(self) -> int:
        """Transitions of a batch over all ranks, with full segments."""
        return self.learner.batch_segments * self.replay.segment_length

    @property
    def demonstrated(self) -> int:
        """Demonstrated decisions beside every batch, over all ranks."""
        share = self.replay.demonstration_share
        return max(1, round(share * self.batch_transitions)) if share else 0

    @property
    def micro_batch_segments(self) -> int:
        """Segments in one forward of one rank, at most, whichever setting says so."""
        rows = self.learner.micro_batch_rows
        return (
            rows // self.replay.segment_length if isinstance(rows, int) else self.learner.micro_batch_segments
        )

    def __post_init__(self) -> None:
        replay, rollout, learner = self.replay, self.rollout, self.learner
        if self.micro_batch_segments < 1:
            raise UserError(
                f"learner.micro_batch_rows is {learner.micro_batch_rows}, less than a segment "
                f"(replay.segment_length {replay.segment_length}): raise it, or lower the length"
            )
        batch_transitions = self.batch_transitions
        if replay.demonstration_share and self.demonstrations is None:
            raise UserError(
                f"replay.demonstration_share is {replay.demonstration_share:g}, but there are no "
                "demonstrations: add demonstrations=recorded demonstrations.path=RUN of sft, or another one"
            )
        if self.demonstrations is not None and not replay.demonstration_share:
            raise UserError(
                f"demonstrations={self.demonstrations.name} is set, but replay.demonstration_share is 0: set "
                "it to 0.1, for instance, or leave the demonstrations out"
            )
        if replay.capacity < batch_transitions:
            raise UserError(
                f"replay.capacity is {replay.capacity} transitions, less than one batch "
                f"(learner.batch_segments {learner.batch_segments} x replay.segment_length "
                f"{replay.segment_length} = {batch_transitions}): raise the capacity or lower the batch"
            )
        if rollout.envs % rollout.group_size:
            raise UserError(
                f"rollout.group_size is {rollout.group_size}: it must divide rollout.workers x "
                f"rollout.envs_per_worker = {rollout.envs}"
            )
        learner.check_credit(self.credit.build().needs_values, self.credit.uses_stored_values)
        if rollout.group_filter == "contrast" and not self.credit.needs_groups:
            raise UserError(
                "rollout.group_filter=contrast compares episodes of one initial state, but credit="
                f"{self.credit.name} does not: choose credit=group, graph or information_gain"
            )
        if self.credit.needs_groups and rollout.group_size < 2:
            raise UserError(
                f"credit={self.credit.name} compares episodes of one initial state: set rollout.group_size "
                "to 2 or more"
            )
        if getattr(self.objective, "needs_proximal", False) and rollout.sync_every == 1:
            raise UserError(
                "rollout.sync_every is 1: the policy that acts is then the learner itself, and "
                f"objective={self.objective.name} as it is set compares the two; set rollout.sync_every to "
                f"learner.updates ({learner.updates}), or objective.proximal=interpolated"
            )
