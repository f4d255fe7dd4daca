"""A small policy on vectors of numbers: the same tokens, objective and learner as a VLA, on a laptop.

Separate actor and critic trunks (a shared one lets the value loss move the policy's features), tokens that
are bins (``bin_heads`` has how they hang together), one action a decision. It reads ``state``, ``proprio``
and ``landmarks``, those that are observed, one behind the other in this order. Inputs are normalised with
running statistics of the first iterations, which then freeze: while they move, the log-ratio of old data
moves with them.

Shapes: B batch, S numbers observed, K steps of a chunk, D action dimensions, V bins; logits are (B, K, D, V).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gipo_envs import EnvironmentSpec
from gipo_envs.errors import UserError
from gipo_vla.policies import bin_heads
from gipo_vla.policies.base import (
    BuildContext,
    Decision,
    Evaluation,
    Observations,
    Policy,
    PolicySettings,
    register,
    sample_tokens,
    token_entropies,
    token_log_probs,
)
from gipo_vla.policies.memory import (
    CUDA_OVERHEAD,
    Arithmetic,
    PolicyMemory,
    TokenShape,
    Work,
    of_trained,
)
from gipo_vla.policies.normalization import VECTORS, RunningNormalizer
from gipo_vla.settings.registry import check

MOST_BINS = 2**16
"""Tokens are stored in 16 bits."""
MOST_ACTIONS, WIDEST, DEEPEST = 10_000, 8192, 32
WORD_BUCKETS = 128
"""For the words of instructions; those of libero_goal are 24."""
LOGITS_KEPT = 6
"""Arrays of the size of the logits that autograd keeps: the network's, those divided by the temperature, and
for the log-probs of the tokens and the entropies the log-softmax, its exponential and their product."""
LOGITS_IN_BACKWARD = 6
"""Further ones while the backward pass goes through them."""


@register
@dataclass(frozen=True)
class MlpSettings(PolicySettings):
    """A small policy on vectors of numbers, with separate networks for actions and values."""

    free: ClassVar[tuple[str, ...]] = ("greedy", "normalizer_iterations", "initial_std")

    name: Literal["mlp"] = "mlp"
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers of actor and critic."""
    shared_layers: int = 0
    """First hidden layers that actor and critic share and only the actor trains: what the value reads of them
    lets no gradient through."""
    activation: Literal["tanh", "relu", "silu"] = "tanh"
    """What follows each hidden layer."""
    layer_norm: bool = False
    """Normalise what each hidden layer gives before its activation."""
    bins: int = 256
    """Bins a dimension on [-1, 1]."""
    head: bin_heads.HeadName = "independent"
    """How the bins of a dimension hang together. independent: not at all. ordinal: each learns its difference
    from its neighbour. interpolated: straight lines between a few knots. gaussian: a mean and a deviation, as
    is usual for continuous actions; commits itself soonest."""
    knots: int = 16
    """head=interpolated: knots a dimension."""
    initial_std: float = 0.5
    """head=gaussian: the deviation at the start, in actions. Larger explores more; 0.58 is that of a uniform
    distribution."""
    chunk: int = 1
    """Actions a decision. Above 1 the chunk is executed open loop."""
    greedy: Literal["mean", "mode"] = "mean"
    """What acting without noise means: the bin nearest to the distribution's mean action (steadier), or the
    most likely bin."""
    inputs: tuple[Literal["state", "proprio", "landmarks"], ...] | None = None
    """Vectors that the policy reads. None: all that ``env.observations`` names; name them where some are
    observed for a credit only."""
    task_input: Literal["number", "instruction"] = "number"
    """How a policy is told its task. number: a one-hot vector, where the environment has several tasks.
    instruction: the words of its instruction, so that tasks with words in common share what is learned of
    them, and a policy of several tasks can be played on one of them."""
    normalizer_iterations: int = 30
    """Iterations after which the statistics of the observations freeze."""

    def __post_init__(self) -> None:
        check(self.bins >= 2, "policy.bins", self.bins, "be at least 2")
        check(self.bins <= MOST_BINS, "policy.bins", self.bins, f"be at most {MOST_BINS}")
        check(self.chunk >= 1, "policy.chunk", self.chunk, "be at least 1")
        check(self.chunk <= MOST_ACTIONS, "policy.chunk", self.chunk, f"be at most {MOST_ACTIONS}")
        hidden = list(self.hidden[: DEEPEST + 1])
        check(min(hidden, default=0) >= 1, "policy.hidden", hidden, "name positive widths")
        fits = len(hidden) <= DEEPEST and max(hidden) <= WIDEST
        check(fits, "policy.hidden", hidden, f"name at most {DEEPEST} widths up to {WIDEST}")
        shared = self.shared_layers
        check(0 <= shared <= len(hidden), "policy.shared_layers", shared, f"be from 0 to {len(hidden)}")
        check(2 <= self.knots <= MOST_BINS, "policy.knots", self.knots, f"be from 2 to {MOST_BINS}")
        usual = "be above 0 and at most 10; 0.3 to 1 is usual"
        check(0 < self.initial_std <= 10, "policy.initial_std", self.initial_std, usual)
        inputs = [None] if self.inputs is None else list(self.inputs)
        once = 0 < len(inputs) == len(set(inputs))
        check(once, "policy.inputs", inputs, "name at least one vector, and none twice")

    def build(self, context: BuildContext) -> Policy:
        return MlpPolicy(self, context.spec).to(context.device)

    def token_shape(self, spec: EnvironmentSpec) -> TokenShape:
        return TokenShape(self.chunk, spec.action_size, self.bins)

    def parameters(self, spec: EnvironmentSpec) -> int:
        """The number of parameters of the policy on an environment."""
        # By arithmetic: to make one, be it on the meta device, takes long for a sweep of hundreds of runs.
        inputs = _size(_vectors(self, spec), spec) + _task_size(self, spec)
        numbers = bin_heads.numbers_of(self.head, self.bins, self.knots)
        actor = (inputs, *self.hidden, self.chunk * spec.action_size * numbers)
        critic = (inputs, *self.hidden, 1)[self.shared_layers :]
        linear = sum((given + 1) * made for widths in (actor, critic) for given, made in pairwise(widths))
        normalized = sum(self.hidden) + sum(self.hidden[self.shared_layers :])
        return linear + (2 * normalized if self.layer_norm else 0)

    def memory(self, work: Work, spec: EnvironmentSpec) -> PolicyMemory:
        parameters = self.parameters(spec)
        logits = 4 * self.chunk * spec.action_size * self.bins
        inputs = _size(_vectors(self, spec), spec) + _task_size(self, spec)
        hidden = 2 * sum(self.hidden) * (2 if self.layer_norm else 1)
        sample = 4 * (inputs + hidden) + LOGITS_KEPT * logits
        return PolicyMemory(
            frozen=0,
            **of_trained(parameters, 4 * parameters, work),
            activations=work.micro_batch * sample,
            workspace=max(LOGITS_IN_BACKWARD * work.micro_batch, LOGITS_KEPT * work.act_batch) * logits,
            overhead=CUDA_OVERHEAD if work.cuda else 0,
        )

    def arithmetic(self, work: Work, spec: EnvironmentSpec) -> Arithmetic:
        forward = 2.0 * self.parameters(spec)
        return Arithmetic(forward, 3 * forward)


ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}


def _trunk(inputs: int, hidden: tuple[int, ...], settings: MlpSettings) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = []
    # SiLU is close to ReLU, and torch has no gain for it.
    gain = nn.init.calculate_gain("tanh" if settings.activation == "tanh" else "relu")
    for width in hidden:
        layer = nn.Linear(inputs, width)
        nn.init.orthogonal_(layer.weight, gain=gain)
        nn.init.zeros_(layer.bias)
        layers += [layer, *([nn.LayerNorm(width)] if settings.layer_norm else [])]
        layers.append(ACTIVATIONS[settings.activation]())
        inputs = width
    return nn.Sequential(*layers), inputs


def _vectors(settings: MlpSettings, spec: EnvironmentSpec) -> tuple[str, ...]:
    """Names of the vectors that are read, in order.

    Raises:
        UserError: one is not observed, or none is.
    """
    observed = tuple(name for name in VECTORS if name in spec.observation)
    asked = observed if settings.inputs is None else settings.inputs
    missing = [name for name in asked if name not in observed]
    if missing or not asked:
        raise UserError(
            f"policy=mlp reads vectors: add {missing[0] if missing else 'state, or proprio and landmarks,'} "
            "to env.observations"
        )
    return tuple(name for name in VECTORS if name in asked)


def _size(vectors: tuple[str, ...], spec: EnvironmentSpec) -> int:
    return sum(spec.observation[name].shape[0] for name in vectors)


def _task_size(settings: MlpSettings, spec: EnvironmentSpec) -> int:
    """Numbers that tell the task; a one-hot vector is usual on MT10 and MT50."""
    if settings.task_input == "instruction":
        return WORD_BUCKETS
    return len(spec.tasks) if len(spec.tasks) > 1 else 0


def bag_of_words(instruction: str) -> Tensor:
    """An instruction as a vector (WORD_BUCKETS,) of length 1: how often each word stands in it, words being
    numbered by their hash (Weinberger et al. 2009, without signs)."""
    counts = torch.zeros(WORD_BUCKETS)
    for word in instruction.lower().split():
        counts[zlib.crc32(word.encode()) % WORD_BUCKETS] += 1
    return nn.functional.normalize(counts, dim=0)


class MlpPolicy(nn.Module, Policy):
    """A policy on the vectors that are observed."""

    normalizer: RunningNormalizer

    def __init__(self, settings: MlpSettings, spec: EnvironmentSpec) -> None:
        super().__init__()
        inputs = _vectors(settings, spec)
        self.settings = settings
        self.chunk, self.action_dims, self.bins = settings.chunk, spec.action_size, settings.bins
        size = _size(inputs, spec)
        self.tasks = len(spec.tasks)
        self.instructions: Tensor
        words = torch.stack([bag_of_words(text) for text in spec.instructions])
        # Not among the weights: the next environment has other tasks.
        self.register_buffer("instructions", words, persistent=False)
        self.normalizer = RunningNormalizer(size, inputs)
        self.normalizer_iterations = settings.normalizer_iterations
        width = size + _task_size(settings, spec)
        self.actor, features = _trunk(width, settings.hidden, settings)
        self.bin_head = bin_heads.build(settings.head, self.bins, settings.knots, settings.initial_std)
        tokens = self.chunk * self.action_dims
        self.action_head = nn.Linear(features, tokens * self.bin_head.numbers)
        # The same distribution everywhere at the start, near-uniform or as wide as ``initial_std``: the first
        # episodes explore the whole range of every dimension.
        nn.init.normal_(self.action_head.weight, std=0.01)
        with torch.no_grad():
            self.action_head.bias.copy_(self.bin_head.initial_bias().repeat(tokens))
        shared = settings.shared_layers
        modules = len(self.actor) // len(settings.hidden)
        self.shared_modules = shared * modules
        """Modules of the actor whose output the critic reads; 0: both read the inputs."""
        own = settings.hidden[shared:]
        self.critic, features = _trunk(settings.hidden[shared - 1] if shared else width, own, settings)
        self.value_head = nn.Linear(features, 1)
        nn.init.zeros_(self.value_head.bias)
        self.bin_centres: Tensor
        self.register_buffer("bin_centres", torch.linspace(-1.0, 1.0, self.bins), persistent=False)

    def _inputs(self, observations: Observations) -> Tensor:
        vector = self._vector(observations)
        if self.settings.task_input == "instruction":
            return torch.cat([vector, self.instructions[observations["task"]]], dim=-1)
        if self.tasks == 1:
            return vector
        # Not ``functional.one_hot``, which looks at the values of what it is given.
        tasks = torch.arange(self.tasks, device=vector.device)
        return torch.cat([vector, (observations["task"].unsqueeze(-1) == tasks).to(vector.dtype)], dim=-1)

    def _vector(self, observations: Observations) -> Tensor:
        read = [observations[name] for name in self.normalizer.inputs]
        vector: Tensor = self.normalizer(read[0] if len(read) == 1 else torch.cat(read, dim=-1))
        return vector

    def _logits(self, inputs: Tensor) -> Tensor:
        numbers = self.action_head(self.actor(inputs)).reshape(
            -1, self.chunk, self.action_dims, self.bin_head.numbers
        )
        logits: Tensor = self.bin_head(numbers)
        return logits

    def _values(self, inputs: Tensor) -> Tensor:
        if self.shared_modules:
            with torch.no_grad():
                inputs = self.actor[: self.shared_modules](inputs)
        return self.value_head(self.critic(inputs)).squeeze(-1).float()

    @torch.no_grad()
    def act(
        self,
        observations: Observations,
        temperature: float,
        generator: torch.Generator | None = None,
        greedy: bool = False,
    ) -> Decision:
        inputs = self._inputs(observations)
        logits = self._logits(inputs).float() / temperature
        if not greedy:
            tokens = sample_tokens(logits, generator)
        elif self.settings.greedy == "mode":
            tokens = logits.argmax(-1)
        else:
            tokens = self.encode((torch.softmax(logits, -1) * self.bin_centres).sum(-1))
        return Decision(tokens, token_log_probs(logits, tokens), self._values(inputs), logits)

    def evaluate(self, observations: Observations, tokens: Tensor, temperature: Tensor) -> Evaluation:
        inputs = self._inputs(observations)
        logits = self._logits(inputs).float() / temperature.reshape(-1, 1, 1, 1)
        log_probs, entropies = token_log_probs(logits, tokens), token_entropies(logits)
        return Evaluation(log_probs, entropies, self._values(inputs), logits)

    forward = evaluate

    @torch.no_grad()
    def value(self, observations: Observations) -> Tensor:
        return self._values(self._inputs(observations))

    @property
    def feature_size(self) -> int:
        return len(self.normalizer.mean)

    @torch.no_grad()
    def features(self, observations: Observations) -> Tensor:
        """What the network gets (B, S), the task apart."""
        return self._vector(observations)

    def decode(self, tokens: Tensor) -> Tensor:
        return self.bin_centres[tokens]

    @torch.no_grad()
    def encode(self, actions: Tensor) -> Tensor:
        return ((actions + 1) / 2 * (self.bins - 1)).round().long().clamp(0, self.bins - 1)
