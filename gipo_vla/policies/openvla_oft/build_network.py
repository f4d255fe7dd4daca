"""A network on its device without a second copy of it in memory.

The network is made on the meta device, where it costs nothing, and each tensor is put in its place as it
arrives: read from a file straight to the device, or drawn there at random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gipo_vla.policies.openvla_oft.network import Float32RotaryEmbedding, OpenVlaOftNetwork
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings
from gipo_vla.policies.precision import KeepsDtype


def network_on_meta(
    settings: OpenVlaOftSettings, action_positions: int, proprio_size: int | None
) -> OpenVlaOftNetwork:
    """The network's modules, without any weights."""
    with torch.device("meta"):
        return OpenVlaOftNetwork(settings, action_positions, proprio_size)


def place(network: nn.Module, name: str, value: Tensor, device: torch.device, dtype: torch.dtype) -> None:
    """Put a tensor in its place; parts that keep float32 do so.

    Raises:
        ValueError: its shape is another than that of the place.
    """
    path, _, key = name.rpartition(".")
    owner, place = network.get_submodule(path), network.get_parameter(name)
    if place.shape != value.shape:
        raise ValueError(f"{name} has the shape {tuple(value.shape)}, not {tuple(place.shape)}")
    kept = torch.float32 if isinstance(owner, KeepsDtype) else dtype
    owner.register_parameter(key, nn.Parameter(value.to(device, kept), requires_grad=place.requires_grad))


def unplaced(network: nn.Module) -> Iterator[str]:
    """Names of parameters that are still on the meta device."""
    for name, parameter in network.named_parameters():
        if parameter.is_meta:
            yield name


def finish(network: OpenVlaOftNetwork, device: torch.device) -> None:
    """Make the buffers that no checkpoint holds: rotary frequencies, SigLIP's position ids."""
    rotary = network.language_model.rotary_emb
    assert isinstance(rotary, Float32RotaryEmbedding)
    rotary.recompute(device)
    embeddings = network.vision.siglip.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=device).unsqueeze(0)
    left = [*unplaced(network), *(name for name, buffer in network.named_buffers() if buffer.is_meta)]
    assert not left, f"still without values: {left}"
    network.requires_grad_(True)


@torch.no_grad()
def draw_weights(network: OpenVlaOftNetwork, device: torch.device, dtype: torch.dtype) -> None:
    """Random values for whatever is still on the meta device, from torch's generator of the device.

    Matrices keep the variance of their input (std 1 / sqrt(inputs)), those that write into a residual stream
    are smaller by the square root of twice the depth, norms are the identity and the action head is small,
    so that a policy from scratch starts close to uniform.
    """
    architecture = network.architecture
    depths = {
        "vision.dino.": architecture.dino.live_depth,
        "vision.siglip.": architecture.siglip.live_depth,
        "language_model.": architecture.layers,
    }
    into_residual = ("o_proj.weight", "out_proj.weight", "down_proj.weight", "mlp.fc2.weight")
    for name in list(unplaced(network)):
        shape = network.get_parameter(name).shape
        value = torch.empty(shape, device=device, dtype=dtype)
        if name.endswith("bias"):
            value.zero_()
        elif "norm" in name or "lambda" in name:
            value.fill_(1.0)
        elif name == "action_queries" or (
            "embed" in name and "projection" not in name and "patch_embedding" not in name
        ):
            value.normal_(std=0.5)
        else:
            std = 1 / math.sqrt(math.prod(shape[1:]))
            if name.endswith(into_residual):
                std /= math.sqrt(2 * next(depth for part, depth in depths.items() if name.startswith(part)))
            if name == "action_head.weight":
                std *= 0.1
            value.normal_(std=std)
        place(network, name, value, device, dtype)
