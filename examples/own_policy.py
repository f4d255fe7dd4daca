"""A policy of one's own: a small convolutional network that sees pixels.

Two convolutions look at the images of all cameras. Where each of their maps is large is a position in the
image (spatial softmax, arXiv 1504.00702), and from these positions small networks make the logits of the
action tokens and the value. Inheriting ``Policy`` brings the twin that acts, the parameter groups of the
optimizer and the absence of a normaliser; what is left is how to look, act and evaluate. The settings class
says before anything is built what the policy's tokens, memory and arithmetic will be.

    python -m gipo_vla.train plugins=[examples.own_policy] experiment=point_pixels
    python -m gipo_vla.train plugins=[examples.own_policy] --help policy.channels
    python -m gipo_vla.sweep plugins=[examples.own_policy] experiment=point_pixels policy.channels=8,16

The first command shows the policy the square twice, as a whole and around the point, and takes two minutes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from gipo_envs import EnvironmentSpec, UserError
from gipo_vla.policies import base
from gipo_vla.policies.base import (
    BuildContext,
    Decision,
    Evaluation,
    Observations,
    Policy,
    PolicySettings,
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
from gipo_vla.settings.composition import preset

SHARPNESS = 10.0
"""Multiplies the maps before their softmax, so that it looks somewhere from the start."""


@base.register
@dataclass(frozen=True)
class ConvolutionalSettings(PolicySettings):
    """A small convolutional policy on images."""

    name: Literal["convolutional"] = "convolutional"
    channels: int = 16
    """Channels of both convolutions; each of the second one's becomes a position in the image."""
    width: int = 128
    """Width of the hidden layers of actor and critic."""
    bins: int = 32
    """Bins a dimension on [-1, 1]."""
    chunk: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for key, least in (("channels", 1), ("width", 1), ("bins", 2)):
            if getattr(self, key) < least:
                raise UserError(f"policy.{key} is {getattr(self, key)}: it must be at least {least}")

    def build(self, context: BuildContext) -> Policy:
        return ConvolutionalPolicy(self, context.spec).to(context.device)

    # What plans ask before anything is built.

    def token_shape(self, spec: EnvironmentSpec) -> TokenShape:
        return TokenShape(self.chunk, spec.action_size, self.bins)

    def memory(self, work: Work, spec: EnvironmentSpec) -> PolicyMemory:
        layers = self._layers(spec)
        weights = sum(layer.weights for layer in layers)
        logits = spec.action_size * self.bins
        # Kept for the backward pass, in float32: the pixels, every layer's output, and the logits six times
        # (log-softmax, entropy).
        pixels = math.prod(_image_shape(spec))
        sample = 4 * (pixels + sum(layer.outputs for layer in layers) + 6 * logits)
        return PolicyMemory(
            frozen=0,
            **of_trained(weights, 4 * weights, work),
            activations=work.micro_batch * sample,
            workspace=max(work.micro_batch, work.act_batch) * sample,
            overhead=CUDA_OVERHEAD if work.cuda else 0,
        )

    def arithmetic(self, work: Work, spec: EnvironmentSpec) -> Arithmetic:
        forward = sum(layer.operations for layer in self._layers(spec))
        return Arithmetic(forward, 3 * forward)

    def _layers(self, spec: EnvironmentSpec) -> list[_Layer]:
        cameras, height, width, colours = _image_shape(spec)
        places = -(-height // 2) * -(-width // 2)
        convolutions = [
            _Layer(9 * inputs * self.channels + self.channels, self.channels * places, places)
            for inputs in (cameras * colours, self.channels)
        ]
        shapes = [(2 * self.channels, self.width), (self.width, spec.action_size * self.bins)]
        shapes += [(2 * self.channels, self.width), (self.width, 1)]
        return [*convolutions, *(_Layer((inputs + 1) * outputs, outputs) for inputs, outputs in shapes)]


class _Layer(NamedTuple):
    weights: int
    outputs: int
    places: int = 1
    """At which the weights are used."""

    @property
    def operations(self) -> float:
        return 2.0 * self.weights * self.places


def _image_shape(spec: EnvironmentSpec) -> tuple[int, ...]:
    """Cameras, height, width and colours."""
    if "images" not in spec.observation:
        raise UserError("policy=convolutional looks at images: add images to env.observations")
    return spec.observation["images"].shape


class ConvolutionalPolicy(nn.Module, Policy):
    """The network. Shapes: B batch, C cameras, H height, W width, K = 1 step of a chunk, D action dimensions,
    V bins."""

    def __init__(self, settings: ConvolutionalSettings, spec: EnvironmentSpec) -> None:
        super().__init__()
        cameras, *_, colours = _image_shape(spec)
        self.chunk, self.action_dims, self.bins = settings.chunk, spec.action_size, settings.bins
        channels, hidden = settings.channels, settings.width
        self.convolutions = nn.Sequential(
            nn.Conv2d(cameras * colours, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.actor = nn.Sequential(nn.Linear(2 * channels, hidden), nn.Tanh())
        self.action_head = nn.Linear(hidden, self.action_dims * self.bins)
        nn.init.normal_(self.action_head.weight, std=0.01)  # nearly uniform: the first episodes explore
        nn.init.zeros_(self.action_head.bias)
        self.critic = nn.Sequential(nn.Linear(2 * channels, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.bin_centres: Tensor
        self.register_buffer("bin_centres", torch.linspace(-1.0, 1.0, self.bins), persistent=False)

    def _look(self, observations: Observations) -> tuple[Tensor, Tensor]:
        """Logits (B, 1, D, V) and values (B,)."""
        pixels = observations["images"].permute(0, 1, 4, 2, 3).flatten(1, 2)  # (B, C * 3, H, W)
        positions = expected_positions(SHARPNESS * self.convolutions(pixels.float() / 127.5 - 1.0))
        logits = self.action_head(self.actor(positions)).unflatten(-1, (1, self.action_dims, self.bins))
        # Detached: the value does not move what the policy sees by.
        return logits, self.critic(positions.detach()).squeeze(-1)

    @torch.no_grad()
    def act(
        self,
        observations: Observations,
        temperature: float,
        generator: torch.Generator | None = None,
        greedy: bool = False,
    ) -> Decision:
        """The greedy action is the mean of the distribution."""
        logits, values = self._look(observations)
        logits = logits / temperature
        if greedy:
            tokens = self.encode((logits.softmax(-1) * self.bin_centres).sum(-1))
        else:
            tokens = sample_tokens(logits, generator)
        return Decision(tokens, token_log_probs(logits, tokens), values, logits)

    def evaluate(self, observations: Observations, tokens: Tensor, temperature: Tensor) -> Evaluation:
        logits, values = self._look(observations)
        logits = logits / temperature.reshape(-1, 1, 1, 1)
        return Evaluation(token_log_probs(logits, tokens), token_entropies(logits), values, logits)

    forward = evaluate  # what the training engine calls

    @torch.no_grad()
    def value(self, observations: Observations) -> Tensor:
        return self._look(observations)[1]

    def decode(self, tokens: Tensor) -> Tensor:
        return self.bin_centres[tokens]

    @torch.no_grad()
    def encode(self, actions: Tensor) -> Tensor:
        return ((actions + 1) / 2 * (self.bins - 1)).round().long().clamp(0, self.bins - 1)


def expected_positions(maps: Tensor) -> Tensor:
    """Where each map (B, channels, H, W) is large: the mean x and y, in [-1, 1], of its softmax over the
    image (B, 2 channels)."""
    height, width = maps.shape[-2:]
    weights = maps.flatten(2).softmax(-1).unflatten(-1, (height, width))
    x = (weights.sum(2) * torch.linspace(-1, 1, width, device=maps.device)).sum(-1)
    y = (weights.sum(3) * torch.linspace(-1, 1, height, device=maps.device)).sum(-1)
    return torch.cat([x, y], dim=-1)


preset(
    "experiment",
    "point_pixels",
    {
        "defaults": ["/experiment/point_reach", {"override /policy": "convolutional"}],
        "experiment": "point_pixels",
        "env": {"observations": ["images"], "camera": {"names": ["top", "near"]}},
        "iterations": 80,
    },
)
