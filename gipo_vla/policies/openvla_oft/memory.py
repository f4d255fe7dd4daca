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
from typing import Literal

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
from gipo_vla.policies.openvla_oft.names import Layout, published_layout
from gipo_vla.policies.openvla_oft.prompt import prompt_ids
from gipo_vla.policies.openvla_oft.settings import (
    ACTION_IDS,
    REGISTER_TOKENS,
    Architecture,
    OpenVlaOftSettings,
    TowerSettings,
)
from gipo_vla.policies.openvla_oft.tiny_tokenizer import tiny_tokenizer
from gipo_vla.policies.value_heads import ValueHeadSettings

HOST_LIBRARIES = 250_000_000
"""Resident on a CPU after the first forward and backward: transformers, and what oneDNN keeps (measured)."""
CHARACTERS_A_TOKEN = 3
"""Characters of an instruction to a token, at least: the Llama tokenizer's average is about 4."""


@dataclass(frozen=True)
class Workload:
    """What a rank does with the policy: the numbers that are not among the policy's settings."""

    micro_batch: int
    """Samples (decisions) in one forward and backward."""
    act_batch: int = 0
    """Samples in one forward without gradient."""
    images: int = 1
    proprio_size: int | None = None
    action_dims: int = 7
    prompt_tokens: int = 30
    """Longest prompt, ``<s>`` included."""
    dtype: DtypeName = "bfloat16"
    """Of the model."""
    ranks: int = 1
    zero_stage: Literal[0, 1, 2] = 2
    cuda: bool = True
    twins: int = 1
    """Copies of what trains beside the learner's own: the behaviour policy's, a frozen reference's."""


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by what happens to them."""

    frozen: int
    policy: int
    """Trained, without the value head."""
    value: int


def workload_of(settings: OpenVlaOftSettings, work: Work, spec: EnvironmentSpec) -> Workload:
    """The workload of a rank on an environment."""
    return Workload(
        work.micro_batch,
        work.act_batch,
        images=settings.images or spec.observation["images"].shape[0],
        proprio_size=_proprio_size(settings, spec),
        action_dims=spec.action_size,
        prompt_tokens=prompt_tokens(settings, spec),
        dtype=work.dtype,
        ranks=work.ranks,
        zero_stage=work.zero_stage,
        cuda=work.cuda,
        twins=work.twins,
    )


def _proprio_size(settings: OpenVlaOftSettings, spec: EnvironmentSpec) -> int | None:
    """Of the proprioception token; where only the checkpoint knows whether there is one, that there is."""
    if settings.proprio is False or (settings.proprio is None and settings.checkpoint is None):
        return None
    given = spec.observation.get("proprio")
    return given.shape[0] if given else None


def prompt_tokens(settings: OpenVlaOftSettings, spec: EnvironmentSpec) -> int:
    """The length of the longest prompt: exact with the built-in tokenizer, at most that with another."""
    if settings.checkpoint is None:
        tokenizer = tiny_tokenizer(settings.architecture)
        return max(
            len(prompt_ids(tokenizer, settings.prompt, text, settings.architecture))
            for text in spec.instructions
        )
    longest = max(len(settings.prompt.replace("{instruction}", text)) for text in spec.instructions)
    return longest // CHARACTERS_A_TOKEN


def remedy(settings: OpenVlaOftSettings, memory: PolicyMemory, dtype: DtypeName) -> str | None:
    """See ``policies.memory.Declares``."""
    by_sample = memory.activations + memory.workspace
    by_parameter = memory.trainable + memory.twin + memory.gradients + memory.optimizer
    if settings.training == "full" and by_parameter >= by_sample:
        return "set policy.training=lora"
    if memory.frozen > by_sample and dtype == "float32":
        return "set learner.precision=bfloat16"
    return None if settings.activation_checkpointing else "set policy.activation_checkpointing=true"


def plan_memory(settings: OpenVlaOftSettings, workload: Workload) -> PolicyMemory:
    """Bytes on one rank's device for training the policy of these settings."""
    counts = count_parameters(settings, workload)
    model, adapter = BYTES[workload.dtype], _arithmetic_bytes(settings, workload)
    trained = counts.policy + counts.value
    # What trains is float32; in another precision it is cast for each forward.
    casts = counts.policy * adapter if adapter < 4 else 0
    tokens = tokens_per_sample(settings, workload)
    block = llama_block_bytes(settings, model, adapter) * tokens
    checkpointed = settings.activation_checkpointing
    act = workload.act_batch * tokens * model * (6 * settings.architecture.hidden)
    act += workload.act_batch * tokens * model * 3 * settings.architecture.intermediate
    backward = workload.micro_batch * block * (2 if checkpointed else 1)
    work = Work(
        workload.micro_batch,
        ranks=workload.ranks,
        zero_stage=workload.zero_stage,
        twins=workload.twins,
    )
    return PolicyMemory(
        frozen=counts.frozen * model,
        **of_trained(trained, 4 * trained, work),
        activations=workload.micro_batch * sample_activation_bytes(settings, workload) + casts,
        workspace=max(backward, act),
        overhead=CUDA_OVERHEAD if workload.cuda else 0,
    )


def arithmetic(settings: OpenVlaOftSettings, workload: Workload) -> Arithmetic:
    """Rough operations of a sample: two for each parameter and token, attention and heads left out.

    ``python -m gipo_vla.benchmark policy`` counts them exactly.
    """
    counts = count_parameters(settings, workload)
    forward = 2.0 * (counts.frozen + counts.policy) * tokens_per_sample(settings, workload)
    backward = 2 if settings.training == "full" else 1
    return Arithmetic(forward, forward * (1 + backward + settings.activation_checkpointing))


def tokens_per_sample(settings: OpenVlaOftSettings, workload: Workload) -> int:
    """T: begin token and patches, proprio token, prompt, action positions, stop token."""
    return (
        workload.images * settings.architecture.patches
        + int(workload.proprio_size is not None)
        + workload.prompt_tokens
        + settings.chunk * workload.action_dims
        + int(settings.stop_token)
    )


# -------------------------------------------------------------------------------------------- parameters


def count_parameters(settings: OpenVlaOftSettings, workload: Workload) -> ParameterCounts:
    """Exact parameter counts of the policy that ``build`` makes."""
    architecture = settings.architecture
    layout = published_layout(architecture, settings.full_vocabulary)
    network = sum(_live_size(layout, name) for name in layout)
    width = architecture.hidden
    if workload.proprio_size is not None:
        network += (workload.proprio_size + 1) * width + (width + 1) * width
    if settings.action_queries == "learned":
        network += settings.chunk * workload.action_dims * width
    value = value_head_parameters(width, settings.value)
    if settings.training == "full":
        return ParameterCounts(0, network, value)
    return ParameterCounts(network, adapter_parameters(settings), value)


def adapter_parameters(settings: OpenVlaOftSettings) -> int:
    """Of the LoRA adapters: rank x (inputs + outputs) for every adapted matrix, q, k and v apart."""
    layout = published_layout(settings.architecture, settings.full_vocabulary)
    total = 0
    for name, entry in layout.items():
        if (
            name.endswith(".weight")
            and not entry.dead
            and _part_of(name, entry.shape) in settings.lora.towers
        ):
            rows = entry.shape[0] if entry.rows is None else entry.rows[1] - entry.rows[0]
            inputs = math.prod(entry.shape[1:])
            total += settings.lora.rank * (len(entry.native) * inputs + rows)
    return total


def value_head_parameters(width: int, settings: ValueHeadSettings) -> int:
    hidden = settings.width
    if settings.kind == "token":
        return (width + 1) * hidden + (hidden + 1) * (hidden // 4) + hidden // 4 + 1
    norm, keys_values, query = 2 * width, (width + 1) * 2 * hidden, hidden
    return norm + keys_values + query + (hidden + 1) * hidden + hidden + 1


def _live_size(layout: Layout, name: str) -> int:
    entry = layout[name]
    if entry.dead:
        return 0
    rows = entry.shape[0] if entry.rows is None else entry.rows[1] - entry.rows[0]
    return rows * math.prod(entry.shape[1:])


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


def _arithmetic_bytes(settings: OpenVlaOftSettings, workload: Workload) -> int:
    """Bytes of a number in the products with the policy's trained parameters."""
    if settings.training == "full" or settings.lora.dtype == "auto":
        return BYTES[workload.dtype]
    return BYTES[settings.lora.dtype]


# ------------------------------------------------------------------------------------------- activations


def sample_activation_bytes(settings: OpenVlaOftSettings, workload: Workload) -> int:
    """Kept for the backward pass of one sample."""
    architecture = settings.architecture
    model, adapter = BYTES[workload.dtype], _arithmetic_bytes(settings, workload)
    tokens = tokens_per_sample(settings, workload)
    full = settings.training == "full"
    towers = settings.lora.towers
    checkpointed = settings.activation_checkpointing
    block = (
        model * architecture.hidden if checkpointed else llama_block_bytes(settings, model, adapter)
    ) * tokens
    total = architecture.layers * block
    in_vision = full or "vision" in towers or "patch_embeddings" in towers
    if in_vision:
        for tower, prefix in ((architecture.dino, 1 + REGISTER_TOKENS), (architecture.siglip, 0)):
            kept = model * tower.width
            if not checkpointed:
                kept = tower_block_bytes(settings, tower, model, adapter)
            total += workload.images * (architecture.patches + prefix) * tower.live_depth * kept
    if in_vision or "projector" in towers:
        total += (
            workload.images * architecture.patches * _projector_bytes(settings, architecture, model, adapter)
        )
    if full or "patch_embeddings" in towers:
        total += workload.images * 6 * architecture.image_size**2 * model
    # Final norm: its input in float32; under full fine-tuning also before and after its weight.
    total += tokens * architecture.hidden * (4 + (2 * model if full else 0))
    # Heads, in float32: log-probs (of the tokens and for the entropy) and probabilities; the action head's
    # input if it trains; what the value head's attention reads.
    positions = settings.chunk * workload.action_dims
    total += positions * 4 * 3 * ACTION_IDS
    if full or "action_head" in towers:
        total += positions * 4 * architecture.hidden
    if settings.value.kind == "attention":  # states, their norm, keys and values
        total += positions * 4 * (2 * architecture.hidden + 2 * settings.value.width)
    return total


def llama_block_bytes(settings: OpenVlaOftSettings, model: int, adapter: int) -> int:
    """Of one Llama block, for one token."""
    architecture, rank = settings.architecture, settings.lora.rank
    width, inner = architecture.hidden, architecture.intermediate
    key_value = width * architecture.key_value_heads // architecture.heads
    kept = 2 * 4 * width + 2 * 4  # the input of both norms in float32, and its inverse root mean square
    kept += model * (2 * width + 2 * key_value) + 4 * architecture.heads  # q, k, v, result; log-sum-exp
    kept += model * 3 * inner  # gate, up, activated gate
    if settings.training == "full":
        kept += model * 2 * width * 2  # both norms before and after their weight
        return kept + model * inner  # what goes down
    if "language_model" not in settings.lora.towers:
        return kept
    kept += 7 * adapter * rank
    if adapter == model:  # inputs of the adapters: shared by those that read the same
        return kept + model * (2 * width + inner)
    # converted for each adapter alone: three of q, k, v, one of o, two of gate and up, one of down
    return kept + adapter * (6 * width + inner)


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
