"""Typed settings, composed by Hydra from configs/ and checked before anything is started.

``load("train", overrides)`` composes the YAML files, applies the command line's overrides and validates the
result against the dataclasses below. Whatever is wrong is a ``UserError`` of one line: an unknown key or
value names the nearest ones that exist.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from gipo_envs import EnvironmentSettings
from gipo_envs.errors import UserError, nearest
from gipo_vla.composing import MISSING, compose_yaml, groups, known_keys, nearest_key, repair
from gipo_vla.credit.gae import GaeSettings
from gipo_vla.credit.graph import GraphSettings
from gipo_vla.credit.group import GroupSettings
from gipo_vla.credit.information_gain import InformationGainSettings
from gipo_vla.objectives.gipo import GipoSettings
from gipo_vla.objectives.no_clip import NoClipSettings
from gipo_vla.objectives.ppo import PpoSettings
from gipo_vla.objectives.regularizers import RegularizerSettings
from gipo_vla.objectives.sapo import SapoSettings
from gipo_vla.policies.mlp import MlpSettings
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[int, Field(ge=0)]

ObjectiveSettings = Annotated[
    GipoSettings | PpoSettings | SapoSettings | NoClipSettings, Field(discriminator="name")
]
CreditSettings = Annotated[
    GaeSettings | GroupSettings | GraphSettings | InformationGainSettings, Field(discriminator="name")
]
PolicySettings = Annotated[MlpSettings | OpenVlaOftSettings, Field(discriminator="name")]
Settings = TypeVar("Settings")
"""Settings of a whole run of some kind."""


@dataclass(frozen=True)
class ReplaySettings:
    """The ring of segments. Its size is what sets the staleness of the data."""

    capacity: Positive
    """Transitions kept, over all ranks; the oldest leave first."""
    segment_length: Positive
    """L: consecutive transitions of one episode that are stored, sampled and trained on together."""
    max_lag: Positive | None = None
    """Segments acted by a policy more than this many updates old are not drawn. None: no limit."""
    memory_limit_gb: PositiveFloat = 8.0
    """Host memory for one rank's shard; slots beyond it evict the oldest segment early."""
    sampler: Literal["uniform", "recency"] = "uniform"
    recency_half_life: PositiveFloat = 0.25
    """sampler=recency: the weight of a segment halves every this fraction of the segments held."""


@dataclass(frozen=True)
class RolloutSettings:
    """How experience is collected."""

    workers: Positive
    """Simulator processes a rank."""
    envs_per_worker: Positive
    env_steps: Positive
    """Env steps that an iteration collects, over all ranks (rounded up to whole vector steps)."""
    collect: Literal["all", "ready"] = "all"
    """all: every environment steps in lockstep, reproducible to the bit. ready: whatever has arrived is
    served, so no straggler holds up the rest, and runs are no longer reproducible."""
    sync_every: Positive = 1
    """Updates between two copies of the learner's weights to the behaviour policy."""
    temperature: PositiveFloat = 1.0
    """Divides the logits when acting; stored with every transition."""
    stagger: bool = True
    """Spread the ends of the first episodes, so that resets do not all fall into the same vector step."""
    group_size: Positive = 1
    """Episodes that share one task and initial state, for group-relative credits (8 is usual there)."""
    task_sampling: Literal["uniform", "success"] = "uniform"
    """How the task of an episode is drawn. success: hard tasks more often, by the failures of each one's last
    episodes (the formula is in ``rollout/task_sampler.py``)."""
    task_sampling_floor: Annotated[float, Field(gt=0, le=1)] = 0.2
    """task_sampling=success: share of the draws that is spread evenly, so that no task is forgotten."""
    worker_timeout_s: PositiveFloat = 120.0
    """A worker that answers nothing for this long counts as hung, and is replaced."""
    max_worker_faults: NonNegative = 10
    """Replaced workers of one rank that are tolerated within ``worker_fault_window``; beyond that the run
    saves a checkpoint and stops."""
    worker_fault_window: Positive = 20
    """Iterations."""
    max_collection_rounds: Positive = 50
    """Rounds of extra collection, when too little may be drawn, after which the run stops."""


@dataclass(frozen=True)
class LearnerSettings:
    """How the policy is updated."""

    updates: Positive
    """Updates an iteration."""
    batch_segments: Positive
    """Segments in one global batch, over all ranks."""
    micro_batch_segments: Positive
    """Segments in one forward of one rank, at most: its share of a batch is cut by this as evenly as
    possible."""
    policy_learning_rate: PositiveFloat
    value_learning_rate: PositiveFloat
    warmup_iterations: NonNegative = 10
    """The learning rates rise linearly from 0 over this many iterations ..."""
    schedule: Literal["cosine", "constant"] = "cosine"
    schedule_iterations: Positive | None = None
    """... and then fall to ``final_learning_rate_fraction`` by this one (None: ``iterations``)."""
    final_learning_rate_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    value_only_updates: NonNegative = 0
    """The first updates train the value alone (a policy that can already do something is worth more than
    the advantages of an untrained value)."""
    policy_gradient_clip: PositiveFloat = 1.0
    value_gradient_clip: PositiveFloat = 1.0
    value_loss_coefficient: PositiveFloat = 1.0
    huber_delta: PositiveFloat = 1.0
    """Value errors beyond this (in scaled return) count linearly."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: PositiveFloat = 1e-8
    max_nonfinite_updates: Positive = 10
    """Updates in a row that may be skipped for a loss or gradient that is not finite."""
    zero_stage: Literal["auto", 1, 2] = "auto"
    """DeepSpeed's ZeRO stage; auto: 1 on CPU, 2 on GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of a vision-language-action network; auto: bfloat16 on GPU, float32 on CPU. Heads, log-probs and small
    policies are float32 always."""
    threads: Positive = 1
    """Torch's CPU threads a rank. More than one beside busy simulator workers is slower, not faster."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Episodes on initial states that training never draws."""

    episodes_per_task: Positive = 50
    every_env_steps: Positive | None = None
    """Also evaluate during training, for the learning curve. None: only at the end."""
    mode: Literal["greedy", "sampled"] = "greedy"
    """The mode of the headline in evaluation.json; the other is reported beside it."""
    during_training_episodes_per_task: Positive = 20
    video: bool = True
    video_episodes: Positive = 4


@dataclass(frozen=True)
class CheckpointSettings:
    every_iterations: Positive | None = None
    """None: only at the end."""
    keep: Positive = 2
    """Newest checkpoints kept."""
    keep_every: Positive | None = None
    """Also keep every so-manieth of the checkpoints of ``every_iterations``, for later evaluations."""


@dataclass(frozen=True)
class TelemetrySettings:
    wandb: Literal["auto", "online", "offline", "off"] = "off"
    """auto: online with an API key, else offline."""
    wandb_project: str = "gipo_vla"
    report: bool = True
    """Write report.html at the end (two seconds)."""
    log_every: Positive = 1
    """Iterations between two lines to wandb and, without a terminal, to the console. metrics.jsonl always
    has every iteration."""


@dataclass(frozen=True)
class Config:
    """A whole training run."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    experiment: str
    iterations: Positive
    env: EnvironmentSettings
    policy: PolicySettings
    objective: ObjectiveSettings
    regularizers: RegularizerSettings
    credit: CreditSettings
    replay: ReplaySettings
    rollout: RolloutSettings
    learner: LearnerSettings
    eval: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    seed: NonNegative = 0
    stop_after: Positive | None = None
    """End this session after so many iterations of the run, with a checkpoint."""
    run_dir: str | None = None
    """None: runs/<experiment>-<task>-<date>."""
    resume: str | None = None
    """A run folder to continue."""
    init_from: str | None = None
    """A run folder (of sft or train), or one of its checkpoints, whose policy this run starts from."""


# ------------------------------------------------------------------------------------------------ checking


_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)


def typed(values: Any, kind: type[Settings]) -> Settings:
    """Settings of a class (a training run's are ``Config``) from values as YAML or OmegaConf has them.

    Raises:
        UserError: naming the first key that does not fit, its value and what was expected.
    """
    values = OmegaConf.to_container(OmegaConf.create(_listed(values)), resolve=True)
    try:
        config: Settings = _adapter(kind).validate_python(values)
    except ValidationError as error:
        raise UserError(_first_problem(error, values)) from error
    if isinstance(config, Config):
        _check_relations(config)
    return config


def from_dict(values: Any) -> Config:
    """A training run's settings; see ``typed``."""
    return typed(values, Config)


def _first_problem(error: ValidationError, values: dict[str, Any]) -> str:
    problem = error.errors(include_url=False)[0]
    path: list[str] = []
    here: Any = values
    for part in problem["loc"]:
        # pydantic puts the tag of a discriminated union into the path; it is no key of the user's.
        if isinstance(here, dict) and part not in here and str(part) == here.get("name"):
            continue
        path.append(str(part))
        if isinstance(here, dict):
            here = here.get(part)
        elif isinstance(here, (list, tuple)) and isinstance(part, int):
            here = here[part]
    key = ".".join(path)
    if problem["type"] == "value_error":  # raised by a settings class: the message is complete
        return str(problem["ctx"]["error"])
    if problem["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        parent: Any = values
        for part in path[:-1]:
            parent = parent[part]
        return f"unknown setting {key!r}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "union_tag_invalid":
        expected = problem["ctx"]["expected_tags"]
        return f"{key}.name is {problem['ctx']['tag']!r}: expected one of {expected}"
    return f"{key} is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _check_relations(config: Config) -> None:
    """What no single value shows: settings that do not go together."""
    replay, rollout, learner = config.replay, config.rollout, config.learner
    batch_transitions = learner.batch_segments * replay.segment_length
    if replay.capacity < batch_transitions:
        raise UserError(
            f"replay.capacity is {replay.capacity} transitions, less than one batch "
            f"(learner.batch_segments {learner.batch_segments} x replay.segment_length "
            f"{replay.segment_length} = {batch_transitions}): raise the capacity or lower the batch"
        )
    if rollout.workers * rollout.envs_per_worker % rollout.group_size:
        raise UserError(
            f"rollout.group_size is {rollout.group_size}: it must divide rollout.workers x "
            f"rollout.envs_per_worker = {rollout.workers * rollout.envs_per_worker}"
        )
    if config.credit.name != "gae" and rollout.group_size < 2:
        raise UserError(
            f"credit={config.credit.name} compares episodes of one initial state: set rollout.group_size to "
            "2 or more"
        )


def load(name: str, overrides: Sequence[str]) -> Config:
    """Compose and check: what a command's arguments mean."""
    values = compose_yaml(name, overrides)
    if "sft" in values:
        raise UserError(f"experiment={values.experiment} belongs to python -m gipo_vla.sft")
    return from_dict(values)


def override(base: Settings, overrides: Sequence[str]) -> Settings:
    """A finished run's settings with overrides, as ``load`` applies them to a fresh composition."""
    values = OmegaConf.create(_listed(to_dict(base)))
    available = groups()
    known = sorted(known_keys(values))
    parser = OverridesParser.create()
    for text in overrides:
        try:
            parsed = parser.parse_override(repair(text))
        except HydraException as error:
            raise UserError(f"{text!r} is not an override: write key=value") from error
        key, value = parsed.key_or_group, parsed.value()
        if key in available:
            if value not in available[key]:
                raise UserError(
                    f"{key}={value}: there is no such {key}; {nearest(str(value), available[key])}"
                )
            values[key] = compose_yaml("train", [f"{key}={value}"])[key]
            continue
        if key not in known and OmegaConf.select(values, key, default=MISSING) is MISSING:
            raise UserError(f"unknown setting {key!r}; {nearest_key(key, known)}")
        OmegaConf.update(values, key, value)
    return typed(values, type(base))


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values, the inverse of ``typed``."""
    return dataclasses.asdict(config)


def to_yaml(config: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(_listed(to_dict(config))))


def from_yaml(path: Path) -> Config:
    """Read a training run's config.yaml."""
    values = read_yaml(path)
    if "sft" in values:
        raise UserError(f"{path} is of a run of python -m gipo_vla.sft: name a run of gipo_vla.train")
    return from_dict(values)


def read_yaml(path: Path) -> Any:
    """The mapping in a run folder's config.yaml.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        values = OmegaConf.load(path)
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, DictConfig) or not values:
        raise UserError(f"{path} holds no settings: expected key: value lines")
    return values


def _listed(values: Any) -> Any:
    """Tuples as lists, which is what YAML has."""
    if isinstance(values, dict):
        return {key: _listed(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_listed(value) for value in values]
    return values


SESSION_KEYS = ("run_dir", "resume", "stop_after")
"""Settings that belong to a session rather than to the run; left out of the digest."""


def digest(config: Any) -> str:
    """Identifies a run's settings: a restart continues a folder only if this is the same."""
    values = {key: value for key, value in to_dict(config).items() if key not in SESSION_KEYS}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
