"""The OpenVLA-OFT network from transformers' own modules: images, proprioception and prompt to states.

Two vision towers see the same image (DINOv2 with registers for geometry, SigLIP for semantics); their patch
features, side by side, are projected to the width of a Llama, which reads

    <s> | patches of every image | proprio token? | rest of the prompt | N action positions | </s>

in one bidirectional pass (Kim et al. 2025, "Fine-Tuning Vision-Language-Action Models", parallel decoding).
The outputs are shifted by one, as in any language model: the first action is read from the last token of the
prompt, and neither the last action position nor ``</s>`` is ever read. Resizing and cropping are done by the
simulator workers (``gipo_envs.openvla_image``), so that only uint8 at the network's size is stored and moved.

What differs from the stock modules, and why:

- ``DinoEmbeddings`` replaces the stock one, which carries a position row for the class token and a mask
  token that the published model does not have;
- both towers end before their last block and without a final norm, because OpenVLA takes the output of the
  second-to-last block;
- the Llama's rotary frequencies stay in float32 whatever dtype the module is cast to (in bfloat16 the phase
  at position 598 would be off by 0.73 rad), and so does the action head (log-probs compared between two
  forward passes need more than the 8 bits of bfloat16).

Shape suffixes: B batch, C cameras, H height and width, P patches, L prompt tokens, N action positions
(chunk x action dimensions, K x D), T all tokens, E width of the Llama, V rows of the head, R proprioception.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlamaConfig,
    LlamaModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gipo_vla.policies.openvla_oft.llama import fuse
from gipo_vla.policies.openvla_oft.settings import (
    ACTION_IDS,
    PATCH_SIZE,
    REGISTER_TOKENS,
    STOP_TOKEN,
    Architecture,
    OpenVlaOftSettings,
)
from gipo_vla.policies.precision import KeepsDtype

MAX_POSITIONS = 2048
DINO_MEAN, DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIGLIP_MEAN, SIGLIP_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


class PixelNormalizer(KeepsDtype):
    """(B, C, H, H, 3) uint8 to (B, 6C, H, H) float32: for each camera DINOv2's channels, then SigLIP's."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(DINO_MEAN + SIGLIP_MEAN).view(6, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(DINO_STD + SIGLIP_STD).view(6, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        channels_first = images.movedim(-1, 2).float().div(255.0)  # (B, C, 3, H, H)
        twice = torch.cat([channels_first, channels_first], dim=2)
        return ((twice - self.mean) / self.std).flatten(1, 2)


class DinoEmbeddings(nn.Module):
    """Patches with positions, behind a class token and registers without (timm's ``no_embed_class``)."""

    def __init__(self, width: int, patches: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, REGISTER_TOKENS, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, patches, width))
        self.projection = nn.Conv2d(3, width, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, pixel_values: Tensor, bool_masked_pos: None = None) -> Tensor:
        """(B, 3, H, H) to (B, 1 + registers + P, width). The second argument is the caller's, always None."""
        patches = self.projection(pixel_values).flatten(2).transpose(1, 2) + self.position_embeddings
        batch = patches.shape[0]
        prefix = torch.cat([self.cls_token, self.register_tokens], dim=1).expand(batch, -1, -1)
        return torch.cat([prefix, patches], dim=1)


class Float32RotaryEmbedding(LlamaRotaryEmbedding):
    """Rotary frequencies that no cast of the module touches and that a build on the meta device leaves "
    "whole."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.recompute(self.inv_freq.device)
        return self

    def recompute(self, device: torch.device) -> None:
        """Set the frequencies on a device, from the configuration."""
        if device.type == "meta":
            return
        with torch.device("cpu"):  # the same bits wherever the module lives
            frequencies, _ = self.compute_default_rope_parameters(self.config)
        self.inv_freq = frequencies.to(device)
        self.original_inv_freq = frequencies.to(device)


class Float32Linear(KeepsDtype, nn.Linear):
    """A linear map that stays in float32 when the module is cast, and computes in it."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input.to(self.weight.dtype), self.weight, self.bias)


class VisionBackbone(nn.Module):
    """Both towers; their features of each patch side by side."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        dino, siglip = architecture.dino, architecture.siglip
        self.dino = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(
                hidden_size=dino.width,
                num_hidden_layers=dino.live_depth,
                num_attention_heads=dino.heads,
                mlp_ratio=dino.mlp // dino.width,
                image_size=architecture.image_size,
                patch_size=PATCH_SIZE,
                num_register_tokens=REGISTER_TOKENS,
                hidden_act="gelu",
                layer_norm_eps=1e-6,
            )
        )
        self.dino.embeddings = DinoEmbeddings(dino.width, architecture.patches)
        self.dino.layernorm = nn.Identity()
        self.siglip = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=siglip.width,
                num_hidden_layers=siglip.live_depth,
                num_attention_heads=siglip.heads,
                intermediate_size=siglip.mlp,
                image_size=architecture.image_size,
                patch_size=PATCH_SIZE,
                hidden_act="gelu",  # the stock default is the tanh form: 1e-3 in the logits
                layer_norm_eps=1e-6,
                vision_use_head=False,
            )
        )
        self.siglip.post_layernorm = nn.Identity()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 6C, H, H), six channels an image (three normalised for each tower), to (B, C*P, width)."""
        batch, channels, height, width = pixel_values.shape
        images = pixel_values.reshape(batch * (channels // 6), 6, height, width)
        dino = self.dino(images[:, :3]).last_hidden_state[:, 1 + REGISTER_TOKENS :]
        siglip = self.siglip(images[:, 3:]).last_hidden_state
        features = torch.cat([dino, siglip], dim=-1)
        return features.reshape(batch, -1, features.shape[-1])


class Projector(nn.Module):
    """Patch features (…, vision width) to tokens (…, E)."""

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_width, 4 * vision_width)
        self.fc2 = nn.Linear(4 * vision_width, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        hidden = functional.gelu(self.fc1(features))
        return self.fc3(functional.gelu(self.fc2(hidden)))


# The small published modules beside the main checkpoint. Their parameter names are the published ones, so
# that ``proprio_projector--*.pt`` and ``action_head--*.pt`` load as they are.


class ProprioProjector(nn.Module):
    """Normalised proprioception (B, R) to one token (B, E)."""

    def __init__(self, proprio_size: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprio_size, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, proprio: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(proprio)))


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.ffn(inputs)


class ResidualMlp(nn.Module):
    """OpenVLA-OFT's ``MLPResNet`` with two blocks."""

    def __init__(self, input_size: int, width: int, output_size: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(input_size)
        self.fc1 = nn.Linear(input_size, width)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(2))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, output_size)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = functional.relu(self.fc1(self.layer_norm1(inputs)))
        for block in self.mlp_resnet_blocks:
            hidden = block(hidden)
        return self.fc2(self.layer_norm2(hidden))


class L1ActionHead(nn.Module):
    """Hidden states of the action positions to normalised continuous actions (``L1RegressionActionHead``)."""

    def __init__(self, width: int, action_dims: int) -> None:
        super().__init__()
        self.action_dims = action_dims
        self.model = ResidualMlp(width * action_dims, width, action_dims)

    def forward(self, states: Tensor) -> Tensor:
        """(B, K*D, E) to (B, K, D)."""
        batch = states.shape[0]
        return self.model(states.reshape(batch, -1, self.action_dims * states.shape[-1]))


class OpenVlaOftNetwork(nn.Module):
    """Images, proprioception and prompt to the Llama's hidden states, and those to logits of action ids."""

    def __init__(
        self,
        settings: OpenVlaOftSettings,
        action_positions: int,
        proprio_size: int | None,
    ) -> None:
        super().__init__()
        self.architecture = architecture = settings.architecture
        self.action_positions = action_positions
        self.full_vocabulary = settings.full_vocabulary
        self.stop_token = settings.stop_token
        self.vision = VisionBackbone(architecture)
        self.projector = Projector(architecture.vision_width, architecture.hidden)
        self.proprio_projector = (
            None if proprio_size is None else ProprioProjector(proprio_size, architecture.hidden)
        )
        config = LlamaConfig(
            vocab_size=architecture.vocabulary,
            hidden_size=architecture.hidden,
            intermediate_size=architecture.intermediate,
            num_hidden_layers=architecture.layers,
            num_attention_heads=architecture.heads,
            num_key_value_heads=architecture.key_value_heads,
            rms_norm_eps=architecture.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": architecture.rope_theta},
            max_position_embeddings=MAX_POSITIONS,
            pad_token_id=architecture.pad_id,
            is_causal=False,
            use_cache=False,
        )
        self.language_model = fuse(LlamaModel(config))
        self.language_model.rotary_emb = Float32RotaryEmbedding(config)
        rows = architecture.vocabulary if self.full_vocabulary else ACTION_IDS
        self.action_head = Float32Linear(architecture.hidden, rows, bias=False)
        self.action_queries = None
        if settings.action_queries == "learned":
            self.action_queries = nn.Parameter(torch.zeros(action_positions, architecture.hidden))

    def patch_features(self, pixel_values: Tensor) -> Tensor:
        """(B, 6C, H, H) to both towers' features (B, C*P, vision width)."""
        return self.vision(pixel_values.to(self.dtype))

    def project_images(self, pixel_values: Tensor) -> Tensor:
        """(B, 6C, H, H) to patch tokens (B, C*P, E)."""
        return self.projector(self.patch_features(pixel_values))

    @property
    def dtype(self) -> torch.dtype:
        """What the frozen parts compute in."""
        return self.language_model.norm.weight.dtype

    def forward(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor | None,
        features: Tensor,
        proprio: Tensor | None = None,
    ) -> Tensor:
        """The states (B, N, E) that the N actions are read from, after the final norm; the first is the
        prompt's last token.

        Args:
            prompt_ids: int64 (B, L), ``<s>`` first and the prompt's last token last; padding in between.
            prompt_mask: bool (B, L), False on padding; None where no row has any.
            features: (B, C*P, vision width), of ``patch_features``.
            proprio: (B, R) normalised, or None.
        """
        inputs = self._inputs(prompt_ids, prompt_mask, features, proprio)
        start = inputs[0].shape[1] - int(self.stop_token) - self.action_positions - 1
        return self.language_model(*inputs, read=slice(start, start + self.action_positions))

    def hidden_states(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor | None,
        features: Tensor,
        proprio: Tensor | None = None,
    ) -> Tensor:
        """Those (B, T, E) of every token; see ``forward``."""
        return self.language_model(*self._inputs(prompt_ids, prompt_mask, features, proprio))

    def _inputs(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor | None,
        features: Tensor,
        proprio: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embeddings (B, T, E), positions (B, T) and mask (B, 1, 1, T), as the Llama reads them."""
        batch, device = prompt_ids.shape[0], prompt_ids.device
        text = self.language_model.embed_tokens(prompt_ids)
        parts = [text[:, :1], self.projector(features)]
        if proprio is not None:
            assert self.proprio_projector is not None, "this network has no proprio projector"
            parts.append(self.proprio_projector(proprio.to(self.dtype)).unsqueeze(1))
        inserted = sum(part.shape[1] for part in parts) - 1
        parts.append(text[:, 1:])
        if self.action_queries is None:
            parts.append(text.new_zeros(batch, self.action_positions, text.shape[-1]))
        else:
            parts.append(self.action_queries.to(text.dtype).expand(batch, -1, -1))
        if self.stop_token:
            stop = torch.full((batch, 1), STOP_TOKEN, dtype=torch.int64, device=device)
            parts.append(self.language_model.embed_tokens(stop))
        embeddings = torch.cat(parts, dim=1)
        if prompt_mask is None:
            return embeddings, torch.arange(embeddings.shape[1], device=device).expand(batch, -1), None
        before, after = prompt_mask[:, :1], prompt_mask[:, 1:]
        ones = prompt_mask.new_ones(batch, 1)
        trailing = self.action_positions + int(self.stop_token)
        mask = torch.cat([before, ones.expand(-1, inserted), after, ones.expand(-1, trailing)], dim=1).bool()
        # Padding takes no position, so a prompt has the same rotary phases however wide its batch is.
        return embeddings, (mask.cumsum(dim=1) - 1).clamp_min(0), mask[:, None, None, :]

    def action_logits(self, states: Tensor) -> Tensor:
        """float32 logits (..., 256) of the action ids, ascending, from states (..., E)."""
        logits = self.action_head(states)
        if self.full_vocabulary:
            first = self.architecture.first_action_id
            logits = logits[..., first : first + ACTION_IDS]
        return logits.float()
