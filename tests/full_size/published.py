"""A checkpoint of random weights in the published layout, written without ever holding the network.

Of the published 7B model that is 15 GB in shards; of a small architecture the same files in a moment. Tensors
are drawn and written one shard after the other, so this takes the memory of one shard.

    python tests/full_size/published.py FOLDER     writes the 7B model for point_reach and prints its digest
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor

from gipo_vla.policies.openvla_oft import Architecture
from gipo_vla.policies.openvla_oft.checkpoint_files import INDEX_FILE
from gipo_vla.policies.openvla_oft.names import Layout, PublishedTensor, published_layout, to_native
from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
from gipo_vla.policies.openvla_oft.text import TOKENIZER_FILE, tiny_tokenizer

POOL = 2**26
"""Normal numbers that all tensors are cut from, each at a place of its own: drawing every one of 7.5 billion
would take minutes."""


def write_random_checkpoint(
    folder: Path, architecture: Architecture, action_size: int, shard_bytes: int, seed: int = 0
) -> str:
    """Write a bfloat16 checkpoint with one data set's statistics; returns the digest of what is used of it.

    Args:
        action_size: action dimensions of the statistics, which leave actions on [-1, 1] as they are.
        shard_bytes: of weights a file.
    """
    folder.mkdir(parents=True)
    layout = published_layout(architecture)
    generator = torch.Generator().manual_seed(seed)
    largest = max(math.prod(entry.shape) for entry in layout.values())
    pool = torch.empty(min(POOL, largest), dtype=torch.bfloat16).normal_(generator=generator)
    digest, weight_map = hashlib.sha256(), {}
    shards = list(_shards(layout, shard_bytes))
    for index, names in enumerate(shards, start=1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _random(name, layout[name], pool, generator, architecture) for name in names}
        for name, tensor in tensors.items():
            for _, part in to_native(tensor, layout[name]):
                digest.update(_bytes(part))
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    text = {"num_attention_heads": architecture.heads, "rms_norm_eps": architecture.rms_norm_eps}
    (folder / "config.json").write_text(json.dumps({"text_config": text}))
    action = {"q01": [-1.0] * action_size, "q99": [1.0] * action_size, "mask": [True] * action_size}
    (folder / "dataset_statistics.json").write_text(json.dumps({"random": {"action": action}}))
    tiny_tokenizer(architecture).save(str(folder / TOKENIZER_FILE))
    return digest.hexdigest()


def digest_of(policy: OpenVlaOftPolicy) -> str:
    """The same digest of a policy's network, without its adapters."""
    digest = hashlib.sha256()
    for entry in published_layout(policy.settings.architecture).values():
        for name in entry.native:
            module_name, _, leaf = name.rpartition(".")
            module = policy.network.get_submodule(module_name)
            owner = module.get_base_layer() if isinstance(module, LoraLayer) else module
            digest.update(_bytes(getattr(owner, leaf).detach().to(torch.bfloat16)))
    return digest.hexdigest()


def _shards(layout: Layout, shard_bytes: int) -> Iterator[Sequence[str]]:
    names: list[str] = []
    filled = 0
    for name, entry in layout.items():
        size = 2 * math.prod(entry.shape)
        if names and filled + size > shard_bytes:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += size
    yield names


def _random(
    name: str, entry: PublishedTensor, pool: Tensor, generator: torch.Generator, architecture: Architecture
) -> Tensor:
    """Values at which activations keep their size from block to block, as in a trained network."""
    count, shape = math.prod(entry.shape), entry.shape
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=torch.bfloat16)
    if "norm" in name or "scale_factor" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    start = int(torch.randint(len(pool), (), generator=generator))
    value = pool.repeat(-(-(start + count) // len(pool)))[start : start + count]
    if "embed_tokens" in name or "token" in name or name.endswith(("pos_embed", "latent")):
        return (0.5 * value).view(shape)
    scale = 1 / math.sqrt(math.prod(shape[1:]))
    if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "mlp.fc2.weight")):
        scale /= math.sqrt(2 * architecture.layers)
    return (scale * value).view(shape)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())


if __name__ == "__main__":
    print(write_random_checkpoint(Path(sys.argv[1]), Architecture(), 2, 1_000_000_000))
