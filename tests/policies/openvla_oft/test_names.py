"""The list of published tensors, at the size of the fixture and of the 7B model (no weights)."""

from __future__ import annotations

import math
from typing import Any

import torch

from gipo_vla.policies.openvla_oft import Architecture, OpenVlaOftSettings
from gipo_vla.policies.openvla_oft.build_network import network_on_meta
from gipo_vla.policies.openvla_oft.names import published_layout, to_native, to_published

PUBLISHED_PARAMETERS = 7_541_237_184


def parameters(layout: Any, dead: bool) -> int:
    return sum(math.prod(entry.shape) for entry in layout.values() if entry.dead == dead)


def test_names_and_shapes_of_the_fixture(meta: dict[str, Any], fixture_architecture: Architecture) -> None:
    layout = published_layout(fixture_architecture)
    assert {name: list(entry.shape) for name, entry in layout.items()} == meta["shapes"]


def test_7b_on_meta_has_the_published_parameters() -> None:
    architecture = Architecture()
    layout = published_layout(architecture, full_vocabulary=True)
    live, dead = parameters(layout, False), parameters(layout, True)
    assert live + dead == PUBLISHED_PARAMETERS
    assert math.prod(layout["vision_backbone.fused_featurizer.attn_pool.kv.weight"].shape) == 2 * 1152**2
    pool = sum(math.prod(e.shape) for name, e in layout.items() if ".attn_pool." in name)
    assert pool == 15_238_352

    settings = OpenVlaOftSettings(full_vocabulary=True, random_weights=True)
    network = network_on_meta(settings, 56, None)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert sum(p.numel() for p in network.parameters()) == PUBLISHED_PARAMETERS - dead
    groups = {
        "language_model": network.language_model.parameters(),
        "action_head": network.action_head.parameters(),
        "projector": network.projector.parameters(),
    }
    counts = {name: sum(p.numel() for p in group) for name, group in groups.items()}
    assert counts["language_model"] + counts["action_head"] == 6_738_939_904
    assert counts["projector"] == 71_385_600

    lean = network_on_meta(OpenVlaOftSettings(random_weights=True), 56, None)
    unused_rows = (architecture.vocabulary - 256) * architecture.hidden
    assert sum(p.numel() for p in lean.parameters()) == PUBLISHED_PARAMETERS - dead - unused_rows


def test_every_7b_tensor_has_exactly_one_published_name() -> None:
    """Every parameter of the network is filled by one published tensor of the right shape."""
    layout = published_layout(Architecture())
    network = network_on_meta(OpenVlaOftSettings(random_weights=True), 56, None)
    filled: dict[str, torch.Size] = {}
    for entry in layout.values():
        for native, part in to_native(torch.empty(entry.shape, device="meta"), entry):
            assert native not in filled
            filled[native] = part.shape
    assert filled == {name: parameter.shape for name, parameter in network.named_parameters()}
    # 24 blocks of 14 and 27 of 12 tensors, 5 and 3 in front, 2 + 2 norms, 13 of the pooling, 6 of the
    # projector, 32 layers of 9, embedding, norm and head.
    assert len(layout) == 24 * 14 + 5 + 2 + 27 * 12 + 3 + 2 + 13 + 6 + 32 * 9 + 3


def test_renaming_is_undone_exactly(fixture_architecture: Architecture) -> None:
    for name, entry in published_layout(fixture_architecture, full_vocabulary=True).items():
        if entry.dead:
            continue
        tensor = torch.randn(entry.shape)
        parts = [part for _, part in to_native(tensor, entry)]
        assert torch.equal(to_published(parts, entry), tensor), name
