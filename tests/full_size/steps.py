"""What the tests of this folder do with a network, as functions that another process can be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gipo_vla.benchmarks.policy import Trial
from gipo_vla.policies.lora import ADAPTER, LoraSettings, adapted_modules, without_adapters
from gipo_vla.policies.numerical_floor import floor_metrics, log_ratio_floor
from gipo_vla.policies.openvla_oft import OpenVlaOftSettings
from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
from gipo_vla.policies.openvla_oft.reading import open_checkpoint
from gipo_vla.policies.openvla_oft.writing import export
from tests.full_size.published import digest_of

ALL_TOWERS = ("vision", "patch_embeddings", "projector", "language_model", "action_head")
CHANGE = 0.1
"""Of a weight by its adapter, relative: more than training does, and far more than rounding."""

Logits = NDArray[np.float32]


def trial(folder: Path, chunk: int, action_size: int, base: Path | None = None) -> Trial:
    """A policy that starts from a folder, in bfloat16, and random observations for it."""
    checkpoint = open_checkpoint(str(folder), None if base is None else str(base))
    checkpoint.tensors.close()
    settings = OpenVlaOftSettings(
        architecture=checkpoint.architecture,
        checkpoint=str(folder),
        base_checkpoint=None if base is None else str(base),
        chunk=chunk,
        lora=LoraSettings(towers=ALL_TOWERS),
    )
    return Trial(settings, torch.device("cpu"), 4, 1, temperature=1.6, action_size=action_size)


def read(folder: Path, chunk: int, action_size: int) -> str:
    """Digest of what training would read from a folder."""
    return digest_of(trial(folder, chunk, action_size).build(torch.bfloat16))


def read_logits(folder: Path, chunk: int, action_size: int, base: Path | None = None) -> Logits:
    """Logits of one observation, of the policy in a folder."""
    own = trial(folder, chunk, action_size, base)
    return _logits(own, own.build(torch.bfloat16))


def export_adapted(
    folder: Path, chunk: int, action_size: int, out: Path, shard_bytes: int
) -> tuple[Logits, Logits]:
    """Put adapters on the policy in a folder, export it merged; its logits without and with them."""
    own = trial(folder, chunk, action_size)
    policy = own.build(torch.bfloat16)
    with without_adapters(policy.network):
        plain = _logits(own, policy)
    draw_adapters(policy)
    adapted = _logits(own, policy)
    export(policy, out, shard_bytes)
    return plain, adapted


@torch.no_grad()
def draw_adapters(policy: OpenVlaOftPolicy) -> None:
    """Random adapters, each of which changes its weight by ``CHANGE`` of its size."""
    generator = torch.Generator().manual_seed(0)
    for _, layer in adapted_modules(policy.network):
        low, high = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        # Entries of B A have the size of B's times A's times the root of the rank.
        size = CHANGE * layer.get_base_layer().weight[:64].float().std()
        low.normal_(std=1.0, generator=generator)
        high.normal_(std=float(size) / (layer.scaling[ADAPTER] * low.shape[0] ** 0.5), generator=generator)


def floor(folder: Path, chunk: int, action_size: int) -> dict[str, Any]:
    """|log rho| of a learner and its fresh twin that see 4 observations one by one and together."""
    own = trial(folder, chunk, action_size)
    policy = own.build(torch.bfloat16)
    twin, observations = policy.twin(), own.observations(4)
    together = log_ratio_floor(twin, policy, observations, 4, own.temperature)
    apart = log_ratio_floor(twin, policy, observations, 1, own.temperature)
    return {"together": floor_metrics(together), "apart": floor_metrics(apart)}


@torch.no_grad()
def _logits(own: Trial, policy: OpenVlaOftPolicy) -> Logits:
    logits = policy.network.action_logits(policy.states(own.observations(1)))
    return logits.float().numpy()
