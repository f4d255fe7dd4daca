"""LoRA adapters in the published naming: the original's module names, as ``peft`` writes them.

The original model has one fused query-key-value projection where ours has three. A published adapter on it
maps exactly (the three share A, B is cut into rows), and so does ours the other way: three adapters of rank r
are one of rank 3r with the A's stacked and the B's on the diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor

from gipo_envs.errors import UserError, first_three
from gipo_vla.policies.lora import low_rank_sum
from gipo_vla.policies.openvla_oft.checkpoint_files import TensorFiles, read_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class PublishedAdapter:
    """An adapter by published module name."""

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    """Module to A (rank, inputs, ...) and B (outputs, rank, ...)."""
    scales: Mapping[str, float]
    """Module to alpha / rank."""
    base: str | None
    """The checkpoint that it was trained on, as its configuration names it."""

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """A published tensor with the adapter of its module added, if it has one."""
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or module not in self.pairs:
            return weight
        low, high = (part.to(weight.device) for part in self.pairs[module])
        return low_rank_sum(weight, low, high, self.scales[module])

    def check(self, shapes: Mapping[str, tuple[int, ...]], source: Path) -> None:
        """Refuse an adapter for modules that a checkpoint (shapes by tensor) does not have.

        Raises:
            UserError: naming the first ones.
        """
        wrong = [
            module
            for module, (low, high) in self.pairs.items()
            if _matrix(shapes.get(f"{module}.weight", ())) != (high.shape[0], low[0].numel())
        ]
        if wrong:
            raise UserError(
                f"{source} adapts {len(wrong)} modules that the base checkpoint lacks or has in another "
                f"shape ({first_three(wrong)}): set "
                "policy.base_checkpoint to the checkpoint that it was trained on"
            )


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Outputs and inputs of a weight; a convolution's window counts among the inputs."""
    return (shape[0], math.prod(shape[1:])) if shape else (0, 0)


def read_adapter(folder: Path) -> PublishedAdapter:
    """An adapter folder as peft writes it.

    Raises:
        UserError: files are missing or damaged, or it is no plain LoRA.
    """
    config = read_json(folder / CONFIG_FILE)
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("bias", "none") != "none":
        raise UserError(
            f"{folder / CONFIG_FILE} is no plain LoRA (peft_type {config.get('peft_type')!r}, use_dora "
            f"{config.get('use_dora')}, bias {config.get('bias')!r}): merge it with the code that made it"
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise UserError(f"{folder / WEIGHTS_FILE} is missing: save the adapter as safetensors")
    tensors = TensorFiles(folder)
    tensors.add(folder / WEIGHTS_FILE)
    halves: dict[str, dict[str, Tensor]] = {}
    for name in tensors.files:
        module, marker, leaf = name.removeprefix(PREFIX).rpartition(".lora_")
        if not marker or leaf not in {"A.weight", "B.weight"}:
            raise UserError(f"{folder / WEIGHTS_FILE} holds {name}, expected lora_A and lora_B weights only")
        halves.setdefault(module, {})[leaf[0]] = tensors.read(name)
    broken = [module for module, pair in halves.items() if set(pair) != {"A", "B"}]
    if broken:
        raise UserError(f"{folder / WEIGHTS_FILE} has only half of {broken[0]}: download it again")
    pairs = {module: (pair["A"], pair["B"]) for module, pair in halves.items()}
    alphas: Mapping[str, float] = config.get("alpha_pattern") or {}
    root = bool(config.get("use_rslora"))
    scales = {}
    for module, (low, _) in pairs.items():
        rank = low.shape[0]
        alpha = float(alphas.get(get_pattern_key(list(alphas), module), config["lora_alpha"]))
        scales[module] = alpha / (rank**0.5 if root else rank)
    return PublishedAdapter(pairs, scales, config.get("base_model_name_or_path") or None)


def write_adapter(folder: Path, adapter: PublishedAdapter, rank: int, alpha: float) -> None:
    """Write an adapter so that peft loads it onto the original model.

    ``rank`` and ``alpha`` are the usual ones; modules of another rank get patterns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors, rank_pattern, alpha_pattern = {}, {}, {}
    for module, (low, high) in adapter.pairs.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = low.contiguous().cpu()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = high.contiguous().cpu()
        if low.shape[0] != rank:
            rank_pattern[module] = low.shape[0]
            alpha_pattern[module] = adapter.scales[module] * low.shape[0]
    save_file(tensors, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
    LoraConfig(
        base_model_name_or_path=adapter.base,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=sorted(adapter.pairs),
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        inference_mode=True,
    ).save_pretrained(str(folder))


def fuse(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One pair (A, B) for the stacked outputs of several modules with the same input.

    Ranks add up: A's are stacked, B's go on the diagonal.
    """
    if len(pairs) == 1:
        return pairs[0]
    low = torch.cat([low for low, _ in pairs])
    return low, torch.block_diag(*(high for _, high in pairs))
