"""Device memory of an OpenVLA-OFT learner, from its settings alone and before any of it is spent.

Parameters are counted exactly. Activations are what autograd keeps for the backward pass, term by term as
the modules keep it (measured with saved-tensor hooks; the tests compare again): each comment names the
tensors. Two facts dominate. With frozen weights a linear map keeps its input only for its adapter, so
adapters that are multiplied in another dtype than the model keep a second, converted copy of every input. And
with activation checkpointing only the input of each block stays, plus one block at a time. What trains is
float32 whatever the model is; where it is multiplied in bfloat16, the casts are kept too.

Shape suffixes: T tokens a sample, E width of the Llama, I its MLP's width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gipo_envs import EnvironmentSpec
from gipo_vla.policies.memory import (
    BYTES,
    CUDA_OVERHEAD,
    Arithmetic,
    DtypeName,
    PolicyMemory,
    Work,
    of_trained,
)
from gipo_vla.policies.openvla_oft.names import published_layout
from gipo_vla.policies.openvla_oft.settings import (
    ACTION_IDS,
    REGISTER_TOKENS,
    Architecture,
    OpenVlaOftSettings,
    TowerSettings,
)
from gipo_vla.policies.openvla_oft.text import prompt_ids, tiny_tokenizer
from gipo_vla.policies.value_heads import build_value_head

HOST_LIBRARIES = 250_000_000
"""Resident on a CPU after the first forward and backward: transformers, and what oneDNN keeps (measured)."""
CHARACTERS_A_TOKEN = 3
"""Characters of an instruction to a token, at least: the Llama tokenizer's average is about 4."""


@dataclass(frozen=True)
class Sample:
    """What one decision reads and makes, beside what the policy's settings say."""

    images: int = 1
    proprio_size: int | None = None
    action_dims: int = 7
    prompt_tokens: int = 30
    """Longest prompt, ``<s>`` included."""


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by what happens to them."""

    frozen: int
    policy: int
    """Trained, without the value head."""
    value: int


def sample_of(settings: OpenVlaOftSettings, spec: EnvironmentSpec) -> Sample:
    """A sample on an environment."""
    # Where only the checkpoint knows whether there is a token of proprioception, that there is.
    reads = settings.proprio or (settings.proprio is None and settings.checkpoint is not None)
    given = spec.observation.get("proprio") if reads else None
    return Sample(
        images=settings.images or spec.observation["images"].shape[0],
        proprio_size=given.shape[0] if given else None,
        action_dims=spec.action_size,
        prompt_tokens=prompt_tokens(settings, spec),
    )


def prompt_tokens(settings: OpenVlaOftSettings, spec: EnvironmentSpec) -> int:
    """The length of the longest prompt: exact with the built-in tokenizer, at most that with another."""
    if settings.checkpoint is None:
        architecture = settings.architecture
        tokenizer = tiny_tokenizer(architecture)
        prompts = [prompt_ids(tokenizer, settings.prompt, text, architecture) for text in spec.instructions]
        return max(map(len, prompts))
    longest = max(len(settings.prompt.replace("{instruction}", text)) for text in spec.instructions)
    return longest // CHARACTERS_A_TOKEN


def remedy(settings: OpenVlaOftSettings, memory: PolicyMemory, dtype: DtypeName) -> str | None:
    """See ``policies.base.PolicySettings``."""
    by_sample = memory.activations + memory.workspace
    by_parameter = memory.trainable + memory.twin + memory.gradients + memory.optimizer
    if settings.training == "full" and by_parameter >= by_sample:
        return "set policy.training=lora"
    if memory.frozen > by_sample and dtype == "float32":
        return "set learner.precision=bfloat16"
    return None if settings.activation_checkpointing else "set policy.activation_checkpointing=true"


def plan_memory(settings: OpenVlaOftSettings, work: Work, sample: Sample) -> PolicyMemory:
    """Bytes on one rank's device for training the policy of these settings."""
    counts = count_parameters(settings, sample)
    architecture, (model, adapter) = settings.architecture, number_bytes(settings, work.dtype)
    trained = counts.policy + counts.value
    # What trains is float32; in another precision it is cast for each forward.
    casts = counts.policy * adapter if adapter < 4 else 0
    tokens = tokens_per_sample(settings, sample)
    act = work.act_batch * tokens * model * (6 * architecture.hidden + 3 * architecture.intermediate)
    block = work.micro_batch * tokens * sum(llama_block_bytes(settings, model, adapter))
    return PolicyMemory(
        frozen=counts.frozen * model,
        **of_trained(trained, 4 * trained, work),
        activations=work.micro_batch * sample_activation_bytes(settings, sample, work.dtype) + casts,
        workspace=max(block * (2 if settings.activation_checkpointing else 1), act),
        overhead=CUDA_OVERHEAD if work.cuda else HOST_LIBRARIES,
    )


def number_bytes(settings: OpenVlaOftSettings, dtype: DtypeName) -> tuple[int, int]:
    """Bytes of a number in the model, and in the products with the policy's trained parameters."""
    follows = settings.training == "full" or settings.lora.dtype == "auto"
    return BYTES[dtype], BYTES[dtype if follows else settings.lora.dtype]


def arithmetic(settings: OpenVlaOftSettings, sample: Sample) -> Arithmetic:
    """Rough operations of a sample: two for each parameter and token, attention and heads left out.

    ``python -m gipo_vla.benchmark policy`` counts them exactly.
    """
    counts = count_parameters(settings, sample)
    forward = 2.0 * (counts.frozen + counts.policy) * tokens_per_sample(settings, sample)
    backward = 2 if settings.training == "full" else 1
    return Arithmetic(forward, forward * (1 + backward + settings.activation_checkpointing))


def tokens_per_sample(settings: OpenVlaOftSettings, sample: Sample) -> int:
    """T: begin token and patches, proprio token, prompt, action positions, stop token."""
    return (
        sample.images * settings.architecture.patches
        + int(sample.proprio_size is not None)
        + sample.prompt_tokens
        + settings.chunk * sample.action_dims
        + int(settings.stop_token)
    )


# -------------------------------------------------------------------------------------------- parameters


def count_parameters(settings: OpenVlaOftSettings, sample: Sample) -> ParameterCounts:
    """Exact parameter counts of the policy that ``build`` makes."""
    width = settings.architecture.hidden
    layout = published_layout(settings.architecture, settings.full_vocabulary)
    network = sum(math.prod(entry.live_shape) for entry in layout.values())
    if sample.proprio_size is not None:
        network += (sample.proprio_size + 1) * width + (width + 1) * width
    if settings.action_queries == "learned":
        network += settings.chunk * sample.action_dims * width
    with torch.device("meta"):
        value = sum(own.numel() for own in build_value_head(width, settings.value).parameters())
    if settings.training == "full":
        return ParameterCounts(0, network, value)
    return ParameterCounts(network, adapter_parameters(settings), value)


def adapter_parameters(settings: OpenVlaOftSettings) -> int:
    """Of the LoRA adapters: rank x (inputs + outputs) for every adapted matrix, q, k and v apart."""
    layout = published_layout(settings.architecture, settings.full_vocabulary)
    return settings.lora.rank * sum(
        len(entry.native) * math.prod(entry.live_shape[1:]) + entry.live_shape[0]
        for name, entry in layout.items()
        if name.endswith(".weight") and not entry.dead and _part_of(name, entry.shape) in settings.lora.towers
    )


def _part_of(name: str, shape: tuple[int, ...]) -> str | None:
    """Which of the adapters' towers a published weight belongs to; None for norms and embeddings."""
    if len(shape) == 4:
        return "patch_embeddings"
    if len(shape) != 2 or "embed_tokens" in name:
        return None
    if name.startswith("vision_backbone."):
        return "vision"
    if name.startswith("projector."):
        return "projector"
    return "action_head" if ".lm_head." in name else "language_model"


# ------------------------------------------------------------------------------------------- activations


def sample_activation_bytes(settings: OpenVlaOftSettings, sample: Sample, dtype: DtypeName) -> int:
    """Kept for the backward pass of one sample."""
    architecture, (model, adapter) = settings.architecture, number_bytes(settings, dtype)
    width, tokens = architecture.hidden, tokens_per_sample(settings, sample)
    full, towers = settings.training == "full", settings.lora.towers
    checkpointed = settings.activation_checkpointing
    seen, read = (model * width, 0) if checkpointed else llama_block_bytes(settings, model, adapter)
    positions = settings.chunk * sample.action_dims
    total = architecture.layers * seen * tokens
    total += read * ((architecture.layers - 1) * tokens + positions)  # the last block answers these alone
    patches = sample.images * architecture.patches
    in_vision = full or "vision" in towers or "patch_embeddings" in towers
    if in_vision:
        for tower, prefix in ((architecture.dino, 1 + REGISTER_TOKENS), (architecture.siglip, 0)):
            kept = model * tower.width
            if not checkpointed:
                kept = tower_block_bytes(settings, tower, model, adapter)
            total += (patches + sample.images * prefix) * tower.live_depth * kept
    if in_vision or "projector" in towers:
        total += patches * _projector_bytes(settings, architecture, model, adapter)
    if full or "patch_embeddings" in towers:
        total += sample.images * 6 * architecture.image_size**2 * model
    # Final norm: its input in float32; under full fine-tuning also before and after its weight.
    total += positions * width * (4 + (2 * model if full else 0))
    # Heads, in float32: log-probs (of the tokens and for the entropy) and probabilities; the action head's
    # input if it trains; what the value head's attention reads.
    by_position = 3 * ACTION_IDS
    if full or "action_head" in towers:
        by_position += width
    if settings.value.kind == "attention":  # states, their norm, keys and values
        by_position += 2 * width + 2 * settings.value.width
    return total + positions * 4 * by_position


def llama_block_bytes(settings: OpenVlaOftSettings, model: int, adapter: int) -> tuple[int, int]:
    """Of one Llama block, for one token: as one that is seen (first norm, keys and values), and as one that
    answers (everything else)."""
    architecture, rank = settings.architecture, settings.lora.rank
    width, inner = architecture.hidden, architecture.intermediate
    key_value = width * architecture.key_value_heads // architecture.heads
    seen = read = 4 * width + 4  # the input of both norms in float32, and its inverse root mean square
    seen += model * 2 * key_value
    read += model * 2 * width + 4 * architecture.heads  # q, result; log-sum-exp
    read += model * 3 * inner  # gate, up, activated gate
    if settings.training == "full":
        both = model * 2 * width  # a norm before and after its weight
        return seen + both, read + both + model * inner  # what goes down
    if "language_model" not in settings.lora.towers:
        return seen, read
    seen, read = seen + 2 * adapter * rank, read + 5 * adapter * rank
    if adapter == model:  # inputs of the adapters: shared by those that read the same
        return seen + model * width, read + model * (width + inner)
    # converted for each adapter alone: two of k and v; one each of q and o, two of gate and up, one of down
    return seen + adapter * 2 * width, read + adapter * (4 * width + inner)


def tower_block_bytes(settings: OpenVlaOftSettings, tower: TowerSettings, model: int, adapter: int) -> int:
    """Of one block of a vision tower, for one token."""
    width, inner, rank = tower.width, tower.mlp, settings.lora.rank
    kept = model * (2 * width + 4) + 4 * tower.heads  # the input of both norms and its statistics
    kept += model * (4 * width + inner)  # q, k, v, result; the MLP before its activation
    if settings.training == "full":  # both norms' results, LayerScale's inputs, the MLP's activation
        return kept + model * (4 * width + inner)
    kept += 6 * adapter * rank
    if adapter == model:
        return kept + model * (2 * width + inner)
    return kept + adapter * (5 * width + inner)


def _projector_bytes(
    settings: OpenVlaOftSettings, architecture: Architecture, model: int, adapter: int
) -> int:
    """Of the projector, for one patch: the three inputs and both values before the activation."""
    vision, width = architecture.vision_width, architecture.hidden
    inputs, before = vision + 4 * vision + width, 4 * vision + width
    if settings.training == "lora" and "projector" not in settings.lora.towers:
        return model * before
    rank = 3 * settings.lora.rank if settings.training == "lora" else 0
    return model * before + adapter * (inputs + rank)
