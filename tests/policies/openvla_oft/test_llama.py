"""The fused Llama against transformers' own, forward and backward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from gipo_vla.policies import lora
from gipo_vla.policies.openvla_oft.llama import FusedLlama, fuse

TOKENS, READ = 11, slice(4, 9)


@pytest.fixture(params=[4, 2], ids=["as many keys as queries", "shared keys"])
def models(request: pytest.FixtureRequest) -> tuple[LlamaModel, FusedLlama]:
    """transformers' own and the fused one, of the same weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=request.param,
        is_causal=False,
        use_cache=False,
    )
    plain = LlamaModel(config)
    return plain, fuse(copy.deepcopy(plain))


@pytest.mark.parametrize("padded", [False, True])
def test_states_and_gradients_are_those_of_transformers(
    models: tuple[LlamaModel, FusedLlama], padded: bool
) -> None:
    plain, fused = models
    embeddings = torch.randn(2, TOKENS, 32, requires_grad=True)
    positions = torch.arange(TOKENS).expand(2, -1)
    mask = torch.ones(2, TOKENS, dtype=torch.bool)
    if padded:
        mask[1, 2:4] = False
        positions = (mask.cumsum(1) - 1).clamp_min(0)
    attends = mask[:, None, None, :]
    extra: dict[str, Any] = {"is_causal": False}
    expected = plain(
        inputs_embeds=embeddings,
        attention_mask=attends.expand(-1, 1, TOKENS, -1),
        position_ids=positions,
        **extra,
    ).last_hidden_state
    whole = fused(embeddings, positions, attends if padded else None)
    torch.testing.assert_close(whole, expected, atol=2e-6, rtol=0)
    read = fused(embeddings, positions, attends if padded else None, READ)
    torch.testing.assert_close(read, expected[:, READ], atol=2e-6, rtol=0)

    def gradients(states: Tensor, model: nn.Module) -> list[Tensor]:
        return list(torch.autograd.grad(states.square().mean(), [embeddings, *used(model)]))

    def used(model: nn.Module) -> list[Tensor]:
        return [own for name, own in model.named_parameters() if "embed_tokens" not in name]

    for ours, theirs in zip(gradients(read, fused), gradients(expected[:, READ], plain), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("of_input", [True, False], ids=["input trains", "input does not"])
@pytest.mark.parametrize("bias", [False, True])
def test_projections_of_one_input(bias: bool, of_input: bool) -> None:
    """Against a product and a sum for each adapter, in float32."""
    torch.manual_seed(0)
    network = nn.ModuleDict({name: nn.Linear(12, size, bias=bias) for name, size in (("a", 8), ("b", 20))})
    lora.inject(network, ["a", "b"], lora.LoraSettings(rank=3, alpha=6.6))
    for parameter in lora.adapter_parameters(network):
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 5, 12, requires_grad=of_input)
    trained = [*([x] if of_input else []), *lora.adapter_parameters(network)]

    def apart(module: Any) -> Tensor:
        down, up = module.lora_A.default.weight, module.lora_B.default.weight
        return module.base_layer(x) + 2.2 * (x @ down.t() @ up.t())

    expected = [apart(network["a"]), apart(network["b"])]
    for results in (lora.project(x, [network["a"], network["b"]]), [network["a"](x), network["b"](x)]):
        for ours, theirs in zip(results, expected, strict=True):
            torch.testing.assert_close(ours, theirs)
        losses = (sum(own.sin().sum() for own in each) for each in (results, expected))
        ours_, theirs_ = (torch.autograd.grad(own, trained, retain_graph=True) for own in losses)  # type: ignore[arg-type]
        torch.testing.assert_close(ours_, theirs_)
    with lora.without_adapters(network):
        assert torch.equal(lora.project(x, [network["a"]])[0], network["a"].base_layer(x))  # type: ignore[operator]
