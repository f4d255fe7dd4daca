"""The network with random weights, built where it stays."""

from __future__ import annotations

import pytest
import torch

from gipo_vla.policies.openvla_oft import build_network
from gipo_vla.policies.openvla_oft.build_network import draw_weights, finish, network_on_meta
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings


def test_random_weights_are_drawn_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the meta device on, every tensor is made once, where it stays."""
    settings = OpenVlaOftSettings(random_weights=True)
    assert all(p.is_meta for p in network_on_meta(settings, 56, None).parameters()), "7B costs nothing yet"

    from tests.policies.openvla_oft.test_memory import small

    network = network_on_meta(small(), 56, 8)
    drawn: dict[str, int] = {}
    place = build_network.place

    def remember(owner: torch.nn.Module, name: str, value: torch.Tensor, *rest: object) -> None:
        drawn[name] = value.data_ptr()
        place(owner, name, value, *rest)  # type: ignore[arg-type]
        assert owner.get_parameter(name).data_ptr() == value.data_ptr(), f"{name} was copied"

    monkeypatch.setattr(build_network, "place", remember)
    draw_weights(network, torch.device("cpu"), torch.float32)
    finish(network, torch.device("cpu"))
    assert set(drawn) == {name for name, _ in network.named_parameters()}
