"""OpenVLA-OFT as a policy: images, proprioception and an instruction to a chunk of action tokens.

One forward of the network answers everything: logits of the 256 action ids at every action position, their
entropies, and a value from the same hidden states. Log-softmax is in float32 whatever the network computes
in.

Shape suffixes: B batch, C cameras, H height and width, K steps of a chunk, D action dimensions, N = K * D,
E width of the Llama, A action size (= D), R proprioception.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from gipo_envs.errors import UserError
from gipo_vla.policies.base import (
    PATCH_FEATURES,
    Decision,
    Evaluation,
    Observations,
    Policy,
    sample_tokens,
    token_entropies,
    token_log_probs,
)
from gipo_vla.policies.openvla_oft.instruction import instruction_ids, mean_log_prob
from gipo_vla.policies.openvla_oft.network import L1ActionHead, OpenVlaOftNetwork, PixelNormalizer
from gipo_vla.policies.openvla_oft.normalization import ActionScaling, ProprioScaling, Statistics
from gipo_vla.policies.openvla_oft.settings import ACTION_IDS, OpenVlaOftSettings
from gipo_vla.policies.openvla_oft.text import pad_prompts, prompt_ids
from gipo_vla.policies.value_heads import build_value_head


class OpenVlaOftPolicy(nn.Module, Policy):
    """The policy protocol on an ``OpenVlaOftNetwork``. Made by ``build`` and ``load``, not directly."""

    bins = ACTION_IDS
    prompt_ids: Tensor
    prompt_mask: Tensor

    def __init__(
        self,
        settings: OpenVlaOftSettings,
        network: OpenVlaOftNetwork,
        action_dims: int,
        tokenizer: Tokenizer | None,
        statistics: Statistics | None = None,
        statistics_entries: Mapping[str, Any] | None = None,
        l1_head: L1ActionHead | None = None,
    ) -> None:
        """The settings are complete here: ``images``, ``proprio`` and ``head`` say what the policy has.

        ``statistics_entries`` are those of every data set, as the published file holds them, for exports.
        """
        super().__init__()
        self.statistics_entries = dict(statistics_entries or {})
        self.settings, self.statistics, self.head = settings, statistics, settings.head
        self.chunk, self.action_dims = settings.chunk, action_dims
        self.tokenizer = tokenizer
        self.network = network
        self.l1_head = l1_head
        self.value_head = build_value_head(settings.architecture.hidden, settings.value)
        self.pixels = PixelNormalizer()
        self.action_scaling = ActionScaling(
            action_dims, statistics.action if statistics else None, settings.gripper
        )
        projector = network.proprio_projector
        self.proprio_scaling = (
            None
            if projector is None
            else ProprioScaling(projector.fc1.in_features, statistics.proprio if statistics else None)
        )
        self.instructions: tuple[str, ...] = ()
        self.register_buffer("prompt_ids", torch.zeros(0, 0, dtype=torch.int64), persistent=False)
        self.register_buffer("prompt_mask", torch.zeros(0, 0, dtype=torch.bool), persistent=False)
        self.pads_prompts = False

    def set_instructions(self, instructions: Sequence[str]) -> None:
        """Tokenise every task's prompt; observations name one by their ``task``.

        All are padded to the longest, whatever tasks a batch holds, so that shapes never change.

        Raises:
            UserError: the checkpoint has no tokenizer, or another model's.
        """
        if self.tokenizer is None:
            raise UserError(
                f"{self.settings.checkpoint} has no tokenizer.json: copy it from openvla/openvla-7b"
            )
        self.instructions = tuple(instructions)
        architecture = self.settings.architecture
        rows = [prompt_ids(self.tokenizer, self.settings.prompt, text, architecture) for text in instructions]
        ids, mask = pad_prompts(rows, architecture.pad_id)
        device = self.prompt_ids.device
        self.pads_prompts = mask is not None
        self.prompt_ids = ids.to(device)
        self.prompt_mask = (torch.ones_like(ids, dtype=torch.bool) if mask is None else mask).to(device)

    # ------------------------------------------------------------------------------------------ protocol

    @torch.no_grad()
    def act(
        self,
        observations: Observations,
        temperature: float,
        generator: torch.Generator | None = None,
        greedy: bool = False,
    ) -> Decision:
        """Sample a chunk for each observation; ``greedy`` takes the most likely token of each position.

        A policy with a continuous head acts greedily only: its tokens are those nearest to what the head
        predicts (within 1/255 of the action range), at log-prob 0.

        Raises:
            UserError: sampling from a continuous head.
        """
        states = self.states(observations)
        values = self._values(states)
        if self.head == "l1":
            assert self.l1_head is not None
            if not greedy:
                self.settings.require_tokens()
            tokens = self.action_scaling.nearest_tokens(self.l1_head(states).float())
            return Decision(tokens, torch.zeros(tokens.shape, device=tokens.device), values)
        logits = self._logits(states, temperature)
        tokens = logits.argmax(-1) if greedy else sample_tokens(logits, generator)
        return Decision(tokens, token_log_probs(logits, tokens), values, logits)

    def evaluate(self, observations: Observations, tokens: Tensor, temperature: Tensor) -> Evaluation:
        states = self.states(observations)
        logits = self._logits(states, temperature.view(-1, 1, 1, 1))
        return Evaluation(
            token_log_probs(logits, tokens), token_entropies(logits), self._values(states), logits
        )

    forward = evaluate

    @torch.no_grad()
    def value(self, observations: Observations) -> Tensor:
        return self._values(self.states(observations))

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        return self.action_scaling.to_environment(self.action_scaling.normalized(tokens))

    @torch.no_grad()
    def encode(self, actions: Tensor) -> Tensor:
        return self.action_scaling.encode(actions.float())

    def twin(self) -> Self:
        """A second module tree: frozen tensors shared, trainable tensors copied.

        Two trees instead of two adapters in one: switching adapters flips ``requires_grad``, is not safe
        between threads, and is silently wrong with activation checkpointing.
        """
        other = super().twin()
        other.compile_if_asked()
        return other

    # --------------------------------------------------------------------------------------- other uses

    def describe(self) -> str:
        """One line for the start of a run."""
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.parameters())
        settings = self.settings
        return (
            f"openvla_oft: {total:,} parameters, {trainable:,} trainable ({settings.training}), "
            f"{settings.images} image(s), proprio {'yes' if settings.proprio else 'no'}, head {self.head}, "
            f"chunk {self.chunk} x {self.action_dims}, statistics "
            f"{self.statistics or 'none: actions on [-1, 1]'}"
        )

    def states(self, observations: Observations) -> Tensor:
        """The states (B, N, E) that the actions are read from."""
        task, scaling = observations["task"], self.proprio_scaling
        return self.network(
            self.prompt_ids[task],
            self.prompt_mask[task] if self.pads_prompts else None,
            self._patch_features(observations),
            None if scaling is None else scaling(observations["proprio"]),
        )

    @property
    def feature_size(self) -> int:
        return self.settings.architecture.vision_width

    @property
    def has_frozen_base(self) -> bool:
        return self.settings.training == "lora"

    def require_instructions(self) -> None:
        """Refuse a network that was built to speak actions only.

        Raises:
            UserError: its head has the rows of the actions alone.
        """
        if not self.settings.full_vocabulary:
            raise UserError(
                "credit.scorer=instruction reads the whole vocabulary: add policy.full_vocabulary=true"
            )

    @torch.no_grad()
    def instruction_log_probs(self, observations: Observations) -> Tensor:
        """(B,) see ``gipo_vla.policies.openvla_oft.instruction``."""
        assert self.tokenizer is not None
        pixels, tasks = self.pixels(observations["images"]), observations["task"]
        result = torch.empty(len(tasks), device=tasks.device)
        for task in tasks.unique().tolist():
            ids = instruction_ids(self.tokenizer, self.instructions[task]).to(tasks.device)
            result[tasks == task] = mean_log_prob(self.network, pixels[tasks == task], ids)
        return result

    @torch.no_grad()
    def features(self, observations: Observations) -> Tensor:
        """The vision towers' patch features (B, vision width), averaged over the patches of all images."""
        return self._patch_features(observations).float().mean(dim=1)

    @torch.no_grad()
    def patch_features(self, observations: Observations) -> Tensor:
        features = self._patch_features(observations)
        return features.view(torch.int16) if features.dtype == torch.bfloat16 else features

    def _patch_features(self, observations: Observations) -> Tensor:
        """(B, C*P, vision width), as they were kept or from the images."""
        kept = observations.get(PATCH_FEATURES)
        if kept is None:
            return self.network.patch_features(self.pixels(observations["images"]))
        return kept.view(torch.bfloat16) if kept.dtype == torch.int16 else kept

    def compile_if_asked(self) -> None:
        if self.settings.compile:
            self.network.language_model.compile()

    def _logits(self, states: Tensor, temperature: float | Tensor) -> Tensor:
        """float32 (B, K, D, 256), divided by the temperature."""
        logits = self.network.action_logits(states)
        return logits.unflatten(1, (self.chunk, self.action_dims)) / temperature

    def _values(self, states: Tensor) -> Tensor:
        return self.value_head(states.detach() if self.settings.value.detach else states)
