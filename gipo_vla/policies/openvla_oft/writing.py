"""From a policy to a folder in the published layout, so that the original evaluation scripts load it.

Adapters are merged into the weights (one tensor at a time, the live policy stays as it is) and also written
as a peft adapter in the original's module names. What this network does not hold comes from the checkpoint
that the policy started from: blocks that never run, and the rows of the language model's head that stand
for words. A policy that started from nothing has neither; then the former are zero, and the latter are the
mean of the action rows, whose logit can never exceed the largest action's (the original takes its argmax
over the whole vocabulary).
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor

from gipo_envs.errors import UserError
from gipo_vla.policies.lora import ADAPTER, merged_weight
from gipo_vla.policies.openvla_oft.adapter_files import PublishedAdapter, fuse, write_adapter
from gipo_vla.policies.openvla_oft.checkpoint_files import ADAPTER_FOLDER, INDEX_FILE, read_json
from gipo_vla.policies.openvla_oft.names import PublishedTensor, published_layout, to_published
from gipo_vla.policies.openvla_oft.network import OpenVlaOftNetwork
from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
from gipo_vla.policies.openvla_oft.reading import EXTRAS_FILE, OWN_SECTION, Checkpoint, open_checkpoint
from gipo_vla.policies.openvla_oft.settings import PADDING_ROWS
from gipo_vla.policies.openvla_oft.text import TOKENIZER_FILE

SHARD_BYTES = 2_000_000_000
"""Weights a file: an export takes as much memory beside the policy."""
COPIED_FILES = (
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "*.py",
)
"""Taken over from the checkpoint that the policy started from: the original code reads them."""
RECORDED_SETTINGS = ("images", "proprio", "chunk", "prompt", "stop_token", "gripper", "action_queries")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportSummary:
    """What was written."""

    folder: Path
    shards: int
    parameters: int
    """Of the merged weights, the dead ones included."""
    adapter: Path | None
    """The peft adapter, if the policy has adapters and started from a checkpoint."""


@torch.no_grad()
def export(policy: OpenVlaOftPolicy, folder: str | Path, shard_bytes: int = SHARD_BYTES) -> ExportSummary:
    """Write a policy as a merged checkpoint in the published layout, and its adapter beside it.

    Args:
        folder: must not exist or be empty.
        shard_bytes: bytes of weights a file.

    Raises:
        UserError: the folder holds something, or the checkpoint that the policy started from is gone.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: name a new folder for the export")
    settings = policy.settings
    origin = settings.checkpoint
    source = open_checkpoint(origin, settings.base_checkpoint) if origin is not None else None
    folder.mkdir(parents=True, exist_ok=True)
    shards, parameters = _write_weights(policy, folder, source, shard_bytes)
    _write_configuration(policy, folder, source)
    if policy.tokenizer is not None:
        policy.tokenizer.save(str(folder / TOKENIZER_FILE))
    _write_component(policy.network.proprio_projector, folder / "proprio_projector--latest_checkpoint.pt")
    _write_component(policy.l1_head, folder / "action_head--latest_checkpoint.pt")
    extras = {f"value_head.{name}": value for name, value in policy.value_head.state_dict().items()}
    if policy.network.action_queries is not None:
        extras["network.action_queries"] = policy.network.action_queries
    save_file({name: _on_cpu(value) for name, value in extras.items()}, str(folder / EXTRAS_FILE))
    adapter = _write_adapter(policy, folder, source, origin)
    logger.info("wrote %s: %d weight file(s), %s parameters", folder, shards, f"{parameters:,}")
    return ExportSummary(folder, shards, parameters, adapter)


def _on_cpu(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return tensor.detach().to("cpu", dtype or tensor.dtype).contiguous().clone()


def _write_weights(
    policy: OpenVlaOftPolicy, folder: Path, source: Checkpoint | None, shard_bytes: int
) -> tuple[int, int]:
    """Write the shards and their index; number of shards and of parameters."""
    network = policy.network
    layout = published_layout(policy.settings.architecture, network.full_vocabulary)
    width = network.dtype.itemsize
    shards: list[list[str]] = [[]]
    filled = 0
    for name, entry in layout.items():
        size = torch.Size(entry.shape).numel() * width
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    weight_map = {}
    parameters = 0
    for index, names in enumerate(shards, start=1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            name: _on_cpu(_published_value(network, name, layout[name], source), network.dtype)
            for name in names
        }
        save_file(tensors, str(folder / file), metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
        parameters += sum(tensor.numel() for tensor in tensors.values())
    index_content = {"metadata": {"total_size": parameters * width}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index_content, indent=2) + "\n", encoding="utf-8")
    return len(shards), parameters


def _published_value(
    network: OpenVlaOftNetwork, name: str, entry: PublishedTensor, source: Checkpoint | None
) -> Tensor:
    """A published tensor with the policy's present values."""
    if entry.dead:
        there = _from_source(source, name, entry)
        return torch.zeros(entry.shape) if there is None else there
    value = to_published([_native_value(network, native) for native in entry.native], entry)
    if entry.rows is None:
        return value
    there = _from_source(source, name, entry)
    if there is None:
        whole = value.mean(dim=0, keepdim=True).repeat(entry.shape[0], 1)
    else:
        whole = there.to(value.device, value.dtype)
    whole[slice(*entry.rows)] = value
    return whole


def _from_source(source: Checkpoint | None, name: str, entry: PublishedTensor) -> Tensor | None:
    if source is None or name not in source.tensors.files:
        return None
    tensor = source.tensors.read(name)
    if tuple(tensor.shape) != entry.shape:
        raise UserError(
            f"{source.folder} has {name} as {tuple(tensor.shape)}, the policy needs {entry.shape}: name the "
            "checkpoint that the policy started from"
        )
    return source.adapter.merged(name, tensor) if source.adapter is not None else tensor.clone()


def _native_value(network: OpenVlaOftNetwork, name: str) -> Tensor:
    """A parameter by its name without adapters, with its adapter merged if it has one."""
    module_name, _, leaf = name.rpartition(".")
    module = network.get_submodule(module_name)
    if isinstance(module, LoraLayer):
        return merged_weight(module) if leaf == "weight" else getattr(module.get_base_layer(), leaf)
    return getattr(module, leaf)


def _write_configuration(policy: OpenVlaOftPolicy, folder: Path, source: Checkpoint | None) -> None:
    """config.json, dataset_statistics.json and the original's other small files."""
    settings = policy.settings
    config = _published_config(policy)
    if source is not None:
        original = source.file("config.json")
        if original is not None:
            config |= read_json(original)
        for pattern in COPIED_FILES:
            for path in (found for place in source.folders for found in sorted(place.glob(pattern))):
                if not (folder / path.name).exists():
                    shutil.copyfile(path, folder / path.name)
    config["norm_stats"] = policy.statistics_entries
    config[OWN_SECTION] = {
        "architecture": asdict(settings.architecture),
        "unnorm_key": policy.statistics.key if policy.statistics else None,
        "action_dims": policy.action_dims,
        "value": asdict(settings.value),
        **{name: getattr(settings, name) for name in RECORDED_SETTINGS},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    statistics = json.dumps(policy.statistics_entries, indent=2) + "\n"
    (folder / "dataset_statistics.json").write_text(statistics, encoding="utf-8")


def _published_config(policy: OpenVlaOftPolicy) -> dict[str, Any]:
    """What ``OpenVLAConfig`` of the original needs, for a policy that started from nothing."""
    architecture = policy.settings.architecture
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "llm_backbone_id": "llama2-7b-pure",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "use_fused_vision_backbone": True,
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "timm_override_act_layers": [None, None],
        "image_sizes": [architecture.image_size, architecture.image_size],
        "image_resize_strategy": "resize-naive",
        "llm_max_length": 2048,
        "n_action_bins": 256,
        "pad_to_multiple_of": PADDING_ROWS,
        "pad_token_id": architecture.pad_id,
        "text_config": {
            "model_type": "llama",
            "hidden_size": architecture.hidden,
            "intermediate_size": architecture.intermediate,
            "num_hidden_layers": architecture.layers,
            "num_attention_heads": architecture.heads,
            "num_key_value_heads": architecture.key_value_heads,
            "rms_norm_eps": architecture.rms_norm_eps,
            "rope_theta": architecture.rope_theta,
            "vocab_size": architecture.vocabulary,
            "pad_token_id": architecture.pad_id,
        },
        "torch_dtype": str(policy.network.dtype).removeprefix("torch."),
    }


def _write_component(module: torch.nn.Module | None, path: Path) -> None:
    """A small module as the original's training code writes it, ``module.`` prefix included."""
    if module is not None:
        torch.save({f"module.{name}": _on_cpu(value) for name, value in module.state_dict().items()}, path)


def _write_adapter(
    policy: OpenVlaOftPolicy, folder: Path, source: Checkpoint | None, origin: str | None
) -> Path | None:
    """The peft adapter, if there is a checkpoint that it applies to."""
    if policy.settings.training != "lora":
        return None
    if source is None or source.adapter is not None:
        logger.info("no %s: the weights under the adapter are in no checkpoint of their own", ADAPTER_FOLDER)
        return None
    lora, target = policy.settings.lora, folder / ADAPTER_FOLDER
    write_adapter(target, _published_adapter(policy, origin), lora.rank, lora.alpha)
    return target


def _published_adapter(policy: OpenVlaOftPolicy, origin: str | None) -> PublishedAdapter:
    layout = published_layout(policy.settings.architecture, policy.network.full_vocabulary)
    pairs, scales = {}, {}
    for name, entry in layout.items():
        places = [native.removesuffix(".weight") for native in entry.native if native.endswith(".weight")]
        modules = [policy.network.get_submodule(place) for place in places]
        layers = [module for module in modules if isinstance(module, LoraLayer)]
        if not layers:
            continue
        assert len(layers) == len(modules), f"only some parts of {name} have adapters"
        weights = [(layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight) for layer in layers]
        low, high = fuse([(_on_cpu(one), _on_cpu(other)) for one, other in weights])
        if entry.rows is not None:
            whole = high.new_zeros(entry.shape[0], high.shape[1])
            whole[slice(*entry.rows)] = high
            high = whole
        module = name.removesuffix(".weight")
        pairs[module], scales[module] = (low, high), layers[0].scaling[ADAPTER]
    return PublishedAdapter(pairs, scales, origin)
