"""Settings of the OpenVLA-OFT policy: plain frozen dataclasses, for configs/policy/openvla_oft_*.yaml.

``Architecture`` holds what the shapes of the tensors depend on. Its defaults are the published 7B model; a
checkpoint brings its own, and one that differs from the settings is refused rather than silently used,
because the memory plan and the cost estimates are made from the settings alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from gipo_envs import ArraySpec, EnvironmentSpec
from gipo_envs.errors import UserError
from gipo_vla.policies.base import BuildContext, Policy, PolicySettings, register
from gipo_vla.policies.lora import LoraSettings
from gipo_vla.policies.memory import Arithmetic, DtypeName, PolicyMemory, TokenShape, Work
from gipo_vla.policies.value_heads import ValueHeadSettings
from gipo_vla.settings import registry

PADDING_ROWS = 64
"""OpenVLA pads the vocabulary to a multiple of 64; its first padding row is the padding token."""
ACTION_IDS = 256
"""The last ids before the padding rows stand for actions (OpenVLA's ``ActionTokenizer``)."""
BEGIN_TOKEN = 1
STOP_TOKEN = 2
PATCH_SIZE = 14
REGISTER_TOKENS = 4


@dataclass(frozen=True)
class TowerSettings:
    """One vision transformer, as published (its last block is part of the files but never runs)."""

    width: int
    """Features of a token."""
    depth: int
    """Blocks in the published files. The features are the output of the second-to-last one."""
    heads: int
    """Attention heads; divides the width."""
    mlp: int
    """Width of the hidden layer of each block's MLP."""

    @property
    def live_depth(self) -> int:
        """Blocks that run."""
        return self.depth - 1


@dataclass(frozen=True)
class Architecture:
    """Sizes of the network; the defaults are ``openvla-7b`` with the ``dinosiglip-vit-so-224px`` backbone."""

    image_size: int = 224
    """Side of the square input images in pixels; a multiple of the patch size, 14."""
    dino: TowerSettings = field(default_factory=lambda: TowerSettings(1024, 24, 16, 4096))
    """``vit_large_patch14_reg4_dinov2``."""
    siglip: TowerSettings = field(default_factory=lambda: TowerSettings(1152, 27, 16, 4304))
    """``vit_so400m_patch14_siglip_224``."""
    hidden: int = 4096
    """Width of the Llama."""
    intermediate: int = 11008
    """Width of the hidden layer of each block's MLP."""
    layers: int = 32
    """Blocks of the Llama."""
    heads: int = 32
    """Attention heads of the Llama; divides ``hidden``."""
    key_value_heads: int = 32
    """Heads of keys and values; divides ``heads``."""
    rms_norm_eps: float = 1e-6
    """1e-6 in the published model (Llama-2 itself has 1e-5, which moves the logits by 5e-4)."""
    rope_theta: float = 10_000.0
    """Base of the rotary positions."""
    vocabulary: int = 32_064
    """Rows of the embedding table, the 64 padding rows included."""
    prompt_end: int = 29_871
    """Id of the lone word boundary that ends every prompt; the first action is read from its position."""

    def __post_init__(self) -> None:
        def check(holds: bool, key: str, value: int, must: str) -> None:
            registry.check(holds, f"policy.architecture.{key}", value, must)

        whole = self.image_size > 0 and self.image_size % PATCH_SIZE == 0
        check(whole, "image_size", self.image_size, f"be a positive multiple of {PATCH_SIZE}")
        for name, tower in (("dino", self.dino), ("siglip", self.siglip)):
            divides = tower.width % tower.heads == 0
            check(divides, f"{name}.heads", tower.heads, f"divide the width {tower.width}")
            reads = "the features are the output of the second-to-last block"
            check(tower.depth >= 2, f"{name}.depth", tower.depth, f"be at least 2, because {reads}")
        dino = self.dino
        check(dino.mlp % dino.width == 0, "dino.mlp", dino.mlp, f"be a multiple of the width {dino.width}")
        even = self.hidden % self.heads == 0 and self.hidden // self.heads % 2 == 0
        pairs = "into heads of even width (rotary positions turn pairs)"
        check(even, "heads", self.heads, f"divide hidden {self.hidden} {pairs}")
        shared = self.heads % self.key_value_heads == 0
        check(shared, "key_value_heads", self.key_value_heads, f"divide heads {self.heads}")
        check(
            STOP_TOKEN < self.prompt_end < self.first_action_id,
            "prompt_end",
            self.prompt_end,
            f"lie between {STOP_TOKEN} and the first action id {self.first_action_id} (vocabulary "
            f"{self.vocabulary} - {PADDING_ROWS} padding rows - {ACTION_IDS} action ids)",
        )

    @property
    def patches(self) -> int:
        """Tokens an image becomes."""
        return (self.image_size // PATCH_SIZE) ** 2

    @property
    def vision_width(self) -> int:
        """Features of a patch: both towers' side by side."""
        return self.dino.width + self.siglip.width

    @property
    def pad_id(self) -> int:
        return self.vocabulary - PADDING_ROWS

    @property
    def first_action_id(self) -> int:
        """31744 in the published vocabulary; the action ids end before ``pad_id``."""
        return self.pad_id - ACTION_IDS


@register
@dataclass(frozen=True)
class OpenVlaOftSettings(PolicySettings):
    """OpenVLA-OFT (Kim, Finn, Liang 2025) with discrete tokens: pixels and an instruction in, a chunk of
    actions out. The defaults are the published 7B model."""

    movable: ClassVar[tuple[str, ...]] = (
        "checkpoint",
        "base_checkpoint",
        "compile",
        "activation_checkpointing",
    )
    # That a frozen base elsewhere is the same one is the user's word.
    free: ClassVar[tuple[str, ...]] = ("random_weights",)

    name: Literal["openvla_oft"] = "openvla_oft"
    architecture: Architecture = field(default_factory=Architecture)
    """Sizes; must fit the checkpoint."""
    checkpoint: str | None = None
    """Folder or Hugging Face id of a checkpoint in the published layout. Required unless
    ``random_weights``."""
    base_checkpoint: str | None = None
    """For a folder that holds only ``lora_adapter/``: the checkpoint that the adapter was trained on. None:
    the one that the adapter's own configuration names."""
    random_weights: bool = False
    """Build without a checkpoint: for benchmarks, for tests and for training a small model from scratch."""
    images: int | None = None
    """Cameras the policy looks at. None: what the checkpoint records, else as many as the environment
    gives."""
    proprio: bool | None = None
    """Add a token of proprioception. None: if the checkpoint has a proprio projector (never with random
    weights: say true there)."""
    head: Literal["auto", "tokens", "l1"] = "auto"
    """tokens: sample discrete action tokens (the one that reinforcement learning needs). l1: the
    checkpoint's continuous head, for evaluation. auto: l1 if the checkpoint has such a head."""
    chunk: int = 8
    """K: actions a decision, executed open loop. The published LIBERO models have 8."""
    prompt: str = "In: What action should the robot take to {instruction}?\nOut:"
    """``{instruction}`` becomes the task's instruction in lower case. Change it only for a model that is
    trained from scratch."""
    unnorm_key: str | None = None
    """Which entry of the checkpoint's ``dataset_statistics.json`` (also tried with ``_no_noops`` added).
    None: the only one there is."""
    gripper: Literal["auto", "libero", "none"] = "auto"
    """libero: the last action goes from 0..1 (1 is open) to +1 (close) or -1 (open), as in the published
    evaluation. auto: that, if the statistics leave the last action un-normalised. none: leave it."""
    stop_token: bool = True
    """End the sequence with ``</s>``, as the published code does. RLinf's checkpoints are trained without."""
    full_vocabulary: bool = False
    """Keep all rows of the language model's head instead of the 256 of the actions. Only needed for the
    original's cloning loss over the whole vocabulary."""
    action_queries: Literal["zeros", "learned"] = "zeros"
    """What the action positions hold on input. zeros: as published. learned: one vector a token, which a
    small model with few layers needs in order to tell the positions apart."""
    training: Literal["lora", "full"] = "lora"
    """lora: adapters on a frozen model. full: every weight (and the twin is then a whole second model)."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    value: ValueHeadSettings = field(default_factory=ValueHeadSettings)
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: a sixth to a third of the speed for most of the memory."""
    compile: bool = False
    """``torch.compile`` the Llama: a minute at the start. Six graphs for a run with all its batch sizes, so
    none need padding. What it gains was counted (docs/benchmarks.md), not timed."""

    def __post_init__(self) -> None:
        check = registry.check
        check(self.chunk >= 1, "policy.chunk", self.chunk, "be at least 1")
        check(self.images is None or self.images >= 1, "policy.images", self.images, "be at least 1, or null")
        check("{instruction}" in self.prompt, "policy.prompt", repr(self.prompt), "contain {instruction}")
        if self.random_weights and self.checkpoint is not None:
            raise UserError(
                f"policy.random_weights is true and policy.checkpoint is {self.checkpoint!r}: set one of them"
            )
        if self.random_weights and self.head == "l1":
            raise UserError(
                "policy.head is l1 with policy.random_weights: a continuous head comes from a checkpoint"
            )

    def require_tokens(self) -> None:
        """Refuse a policy that cannot be sampled from, and so not be reinforced.

        Raises:
            UserError: it acts through a continuous head.
        """
        if self.head == "l1":
            raise UserError(
                f"{self.checkpoint} has an L1 head (action_head--*.pt): its tokens are untrained, so it "
                "cannot be sampled from; clone it to tokens with python -m gipo_vla.sft first, or take a "
                "checkpoint trained on discrete tokens"
            )

    def build(self, context: BuildContext) -> Policy:
        # Imported here: transformers takes seconds that a small policy need not wait for.
        from gipo_vla.policies.openvla_oft.construction import build

        return build(
            self,
            context.spec,
            context.device,
            context.dtype,
            cloning=context.cloning,
            statistics=context.statistics,
            reinforced=context.reinforced,
        )

    # What plans ask. The formulas read these settings: they stand above.

    def token_shape(self, spec: EnvironmentSpec) -> TokenShape:
        return TokenShape(self.chunk, spec.action_size, ACTION_IDS)

    def memory(self, work: Work, spec: EnvironmentSpec) -> PolicyMemory:
        from gipo_vla.policies.openvla_oft.memory import plan_memory, sample_of

        return plan_memory(self, work, sample_of(self, spec))

    def arithmetic(self, work: Work, spec: EnvironmentSpec) -> Arithmetic:
        from gipo_vla.policies.openvla_oft.memory import arithmetic, sample_of

        return arithmetic(self, sample_of(self, spec))

    def patch_features(self, spec: EnvironmentSpec, dtype: DtypeName) -> ArraySpec:
        trains = [own for own in ("vision", "patch_embeddings") if own in self.lora.towers]
        if self.training == "full" or trains:
            name = "training=full" if self.training == "full" else f"lora.towers has {trains[0]}"
            raise UserError(
                "replay.cache_features keeps what the vision towers make of images, but here they train "
                f"(policy.{name}): set it to false, or train adapters on other parts"
            )
        patches = (self.images or spec.observation["images"].shape[0]) * self.architecture.patches
        kept = "float32" if dtype == "float32" else "int16"
        return ArraySpec((patches, self.architecture.vision_width), kept)

    def remedy(self, memory: PolicyMemory, dtype: DtypeName) -> str | None:
        from gipo_vla.policies.openvla_oft.memory import remedy

        return remedy(self, memory, dtype)
