"""The protocol that every policy keeps.

A policy maps observations to *tokens* (K steps x D action dimensions, each one of ``bins`` ids) and tokens
to actions. It knows nothing of simulators, processes or DeepSpeed. Policies are ``torch.nn.Module``s whose
``forward`` is ``evaluate``, so that the training engine can wrap them.

Two promises that the off-policy objectives rest on, tested for every policy at temperatures 1.0 and 1.6:

- ``act`` and ``evaluate`` agree: evaluating the tokens that act returned, at the same temperature and with
  the same weights, gives the same log-probs, whatever else is in the batch;
- ``twin()`` shares every frozen tensor with its original and owns a copy of every trainable one, so that a
  behaviour policy costs no second base model and does not move until it is synchronised.

Shape suffixes: B batch, K steps of a chunk, D action dimensions (tokens a step), A action size.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from gipo_envs import ArraySpec, EnvironmentSpec
from gipo_envs.errors import UserError
from gipo_vla.policies.memory import Arithmetic, DtypeName, PolicyMemory, TokenShape, Work
from gipo_vla.policies.normalization import RunningNormalizer
from gipo_vla.settings.registry import policies

Observations = dict[str, Tensor]
"""A batch of observations: ``images`` uint8 (B, C, H, W, 3), ``proprio`` float32 (B, P), ``state`` float32
(B, S), ``landmarks`` float32 (B, F), ``task`` int64 (B,); those that the environment gives. With
``replay.cache_features`` also ``patch_features``, see ``HasFrozenVision``."""
PATCH_FEATURES = "patch_features"


class Decision(NamedTuple):
    """What ``act`` returns."""

    tokens: Tensor
    """int64 (B, K, D)."""
    log_probs: Tensor
    """float32 (B, K, D), of the sampled tokens at the temperature that sampled them."""
    values: Tensor
    """float32 (B,), in units of scaled return."""
    logits: Tensor | None = None
    """float32 (B, K, D, bins) over the ids, divided by the temperature; small policies only, for the exact
    KL to the behaviour policy."""


class Evaluation(NamedTuple):
    """What ``evaluate`` returns; differentiable."""

    log_probs: Tensor
    """float32 (B, K, D)."""
    entropies: Tensor
    """float32 (B, K, D), of the distributions at the given temperature."""
    values: Tensor
    """float32 (B,)."""
    logits: Tensor | None = None
    """As in ``Decision``."""

    def part(self, rows: slice) -> Evaluation:
        """Some of the rows."""
        logits = None if self.logits is None else self.logits[rows]
        return Evaluation(self.log_probs[rows], self.entropies[rows], self.values[rows], logits)


@runtime_checkable
class Policy(Protocol):
    """A policy with discrete action tokens. Implementations are ``nn.Module``s.

    What stands here with a body suits a small policy, which inherits it: ``class Mine(nn.Module, Policy)``.
    """

    chunk: int
    """K."""
    action_dims: int
    """D."""
    bins: int
    """Ids a token can take."""
    normalizer_iterations: int = 0
    """Iterations over which ``normalizer`` learns."""

    @property
    def normalizer(self) -> RunningNormalizer | None:
        """Statistics of the vectors that the policy reads (its ``inputs``), which training updates in the
        first iterations; None where inputs are normalised by constants. The one thing that moves in a twin
        between two copies of the weights: both policies must see the same inputs. By default a submodule of
        this name, if there is one."""
        assert isinstance(self, nn.Module)
        own = self._modules.get("normalizer")
        return own if isinstance(own, RunningNormalizer) else None

    def act(
        self,
        observations: Observations,
        temperature: float,
        generator: torch.Generator | None = None,
        greedy: bool = False,
    ) -> Decision:
        """Choose a chunk for each observation, without gradient.

        With ``greedy`` the tokens are the policy's best guess (see the policy for how) and the log-probs
        are those of these tokens; they must never enter a replay.
        """
        ...

    def evaluate(self, observations: Observations, tokens: Tensor, temperature: Tensor) -> Evaluation:
        """Log-probs, entropies and values of given tokens (B, K, D) at temperature (B,)."""
        ...

    def value(self, observations: Observations) -> Tensor:
        """Values (B,) alone, without gradient: for observations at which a segment ends."""
        ...

    def decode(self, tokens: Tensor) -> Tensor:
        """Actions float32 (B, K, A) in [-1, 1] of tokens (B, K, D)."""
        ...

    def encode(self, actions: Tensor) -> Tensor:
        """Tokens int64 (B, K, D) whose actions are nearest to the given ones (B, K, A): what cloning aims
        at."""
        ...

    def twin(self) -> Self:
        """A second module tree: frozen tensors, buffers and the normaliser shared; trainable tensors copied
        and frozen."""
        assert isinstance(self, nn.Module)
        frozen = [own for own in self.parameters() if not own.requires_grad]
        # The normaliser itself too: behaviour and learner must see the same inputs while it learns.
        shared = [*frozen, *self.buffers(), *([] if self.normalizer is None else [self.normalizer])]
        return copy.deepcopy(self, {id(own): own for own in shared}).requires_grad_(False)

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trainable parameters as ``{"policy": [(name, parameter), ...], "value": [...]}``.

        The groups are disjoint and cover every trainable parameter: they have their own learning rates
        and their gradients are clipped apart. By default what is named ``value...`` or ``critic...`` is the
        value's.
        """
        assert isinstance(self, nn.Module)
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"policy": [], "value": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                group = "value" if name.startswith(("value", "critic")) else "policy"
                groups[group].append((name, parameter))
        return groups


@runtime_checkable
class HasFeatures(Protocol):
    """A policy that can say in a few numbers what it sees, for credits that compare states."""

    @property
    def feature_size(self) -> int:
        """F."""
        ...

    def features(self, observations: Observations) -> Tensor:
        """float32 (B, F), without gradient: of images, what a vision tower makes of them; else the state."""
        ...


@runtime_checkable
class HasFrozenVision(Protocol):
    """A policy whose vision never trains, so that what it makes of an image can be kept beside the image."""

    def patch_features(self, observations: Observations) -> Tensor:
        """(B, patches, F), without gradient: what ``act``, ``evaluate`` and ``value`` take in place of images
        where an observation has it. float32, or the bits of bfloat16 as int16 (numpy has no such type)."""
        ...


@runtime_checkable
class ReadsInstructions(Protocol):
    """A policy made from a vision-language model that can still speak."""

    @property
    def has_frozen_base(self) -> bool:
        """The model's own weights stay as they were; else whoever needs them keeps a copy."""
        ...

    def require_instructions(self) -> None:
        """Raise UserError where ``instruction_log_probs`` is impossible."""
        ...

    def instruction_log_probs(self, observations: Observations) -> Tensor:
        """float32 (B,), without gradient: mean log-prob of the tokens of each observation's instruction,
        given its images, by the model without adapters."""
        ...


def sample_tokens(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Sample ids (...) from logits (..., bins) that the temperature already divides. Raises UserError: they
    are no numbers."""
    probabilities = torch.softmax(logits.float(), dim=-1)
    try:
        flat = torch.multinomial(probabilities.reshape(-1, logits.shape[-1]), 1, generator=generator)
    except RuntimeError as error:
        if bool(probabilities.isfinite().all()):
            raise
        raise UserError(
            "the policy's logits are no numbers, so nothing can be sampled: its weights have grown beyond "
            "all measure; go back to an earlier checkpoint, or lower the learning rate"
        ) from error
    return flat.reshape(logits.shape[:-1])


def token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """float32 log-probs (...) of ids (...) under logits (..., bins)."""
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def token_entropies(logits: Tensor) -> Tensor:
    """float32 entropies (...), in nats, of logits (..., bins)."""
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    return -(log_probs.exp() * log_probs).sum(-1)


@torch.no_grad()
def copy_trainable(source: nn.Module, target: nn.Module) -> None:
    """Copy every trainable parameter of ``source`` into its namesake of ``target`` (its twin)."""
    destination = dict(target.named_parameters())
    pairs = [(destination[name], p) for name, p in source.named_parameters() if p.requires_grad]
    torch._foreach_copy_([to for to, _ in pairs], [frm for _, frm in pairs])


# ------------------------------------------------------------------------------------------------ settings


@dataclass(frozen=True)
class BuildContext:
    """What a policy is built for."""

    spec: EnvironmentSpec
    device: torch.device
    precision: str = "auto"
    """The value of ``learner.precision``: what the network computes in. See ``network_dtype``."""
    cloning: bool = False
    """The weights are cloned from demonstrations, or are about to be."""
    statistics: Mapping[str, Any] | None = None
    """Statistics of the demonstrations, as in ``dataset_statistics.json``, for policies that normalise by
    them."""
    reinforced: bool = False
    """Actions are going to be sampled and reinforced."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the precision stands for on the device."""
        return network_dtype(self.precision, self.device)


class PolicySettings(Protocol):
    """Settings of a policy: a frozen dataclass, known by the default of its field ``name``."""

    movable: ClassVar[tuple[str, ...]] = ()
    """Settings that a resumed run may change: where files lie, how a machine computes."""
    free: ClassVar[tuple[str, ...]] = ()
    """Settings on which neither the tensors of the policy nor their meaning depend, besides ``movable``."""

    @property
    def name(self) -> str: ...

    @property
    def chunk(self) -> int:
        """Actions a decision, K."""
        ...

    def build(self, context: BuildContext) -> Policy:
        """The policy of these settings, on the context's device, with weights that depend on torch's seed
        alone.

        Raises:
            UserError: settings, environment and checkpoint do not go together.
        """
        ...

    # What plans ask before anything is built.

    def token_shape(self, spec: EnvironmentSpec) -> TokenShape:
        """The shape of a decision's tokens on an environment."""
        ...

    def memory(self, work: Work, spec: EnvironmentSpec) -> PolicyMemory:
        """The memory on one rank's device."""
        ...

    def arithmetic(self, work: Work, spec: EnvironmentSpec) -> Arithmetic:
        """The operations of one sample."""
        ...

    def patch_features(self, spec: EnvironmentSpec, dtype: DtypeName) -> ArraySpec:
        """One observation's, of a policy that ``HasFrozenVision``. Raises UserError: it has none."""
        raise UserError(
            f"replay.cache_features keeps what frozen vision makes of images, and policy={self.name} has "
            "none: set it to false"
        )

    def remedy(self, memory: PolicyMemory, dtype: DtypeName) -> str | None:
        """The setting that saves most where the device's memory is too small, as an advice that begins with a
        verb; None if that is a smaller micro-batch."""
        return None


def network_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype that ``learner.precision`` stands for: auto is bfloat16 on a GPU and float32 on a CPU."""
    if precision == "auto":
        precision = "float32" if device.type == "cpu" else "bfloat16"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


register = policies.register
"""Decorator of the settings class of a policy."""
