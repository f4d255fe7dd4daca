"""The network against the original implementation, whose outputs the fixture holds (float32)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gipo_vla.policies.openvla_oft import load
from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
from tests.policies.openvla_oft.reference import action_logits, action_states, realign, training_loss

TOLERANCE = 2e-5
CASES = ["img1_noprop", "img1_prop", "img2_noprop", "img2_prop"]


@pytest.fixture(scope="module")
def policy(l1_folder: Path) -> OpenVlaOftPolicy:
    return load(l1_folder)


def inputs(io: dict[str, Tensor], case: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    ids, mask, pixels = (io[f"{case}.{name}"] for name in ("input_ids", "attention_mask", "pixel_values"))
    return ids, mask, pixels, io.get(f"{case}.proprio")


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).abs().max())


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_action_logits(policy: OpenVlaOftPolicy, io: dict[str, Tensor], case: str) -> None:
    logits = action_logits(policy, *inputs(io, case))
    assert logits.dtype == torch.float32
    assert difference(logits, io[f"{case}.action_logits_last256"]) <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_every_hidden_state(policy: OpenVlaOftPolicy, io: dict[str, Tensor], case: str) -> None:
    """All positions, so that the order of patches, proprio token, prompt and actions is pinned down."""
    ids, mask, pixels, proprio = inputs(io, case)
    prompt, prompt_mask = realign(ids, mask, 32000)
    features = policy.network.patch_features(pixels)
    hidden = policy.network.hidden_states(prompt, prompt_mask, features, proprio)
    assert difference(hidden, io[f"{case}.full_hidden"]) <= TOLERANCE
    states = policy.network(prompt, prompt_mask, features, proprio)
    assert difference(states, io[f"{case}.action_hidden"]) <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_projected_patches(policy: OpenVlaOftPolicy, io: dict[str, Tensor], case: str) -> None:
    """They are sums whose terms reach 24, where one bit of float32 is 3e-6: the bound is a dozen such bits
    (processors without AVX-512 add in another order, and come to eight)."""
    patches = policy.network.project_images(io[f"{case}.pixel_values"])
    expected = io[f"{case}.projected_patches"]
    one_bit = float(expected.abs().max()) * 2**-23
    torch.testing.assert_close(patches, expected, atol=12 * one_bit, rtol=2e-6)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_discrete_actions(policy: OpenVlaOftPolicy, io: dict[str, Tensor], case: str) -> None:
    """The original's argmax over the whole vocabulary, un-normalised with the checkpoint's statistics."""
    tokens = (io[f"{case}.action_logits_argmax"] - 31744).clamp(0, 255).view(1, 8, 7)
    scaling = policy.action_scaling
    actions = scaling.scaling.unnormalize(scaling.normalized(tokens))[0]
    assert difference(actions, io[f"{case}.discrete_actions"]) <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_l1_head(policy: OpenVlaOftPolicy, io: dict[str, Tensor], case: str) -> None:
    assert policy.l1_head is not None
    normalized = policy.l1_head(action_states(policy, *inputs(io, case)))
    assert difference(normalized, io[f"{case}.l1_normalized"]) <= TOLERANCE
    actions = policy.action_scaling.scaling.unnormalize(normalized)[0]
    assert difference(actions, io[f"{case}.l1_actions"]) <= TOLERANCE


@torch.no_grad()
def test_training_batch_padded_on_the_right(policy: OpenVlaOftPolicy, io: dict[str, Tensor]) -> None:
    logits = action_logits(policy, *inputs(io, "train"))
    assert difference(logits, io["train.action_logits_last256"]) <= TOLERANCE
    states = action_states(policy, *inputs(io, "train"))
    assert difference(states, io["train.action_hidden"]) <= TOLERANCE


@torch.no_grad()
def test_batch_padded_on_the_left_without_stop_token(policy: OpenVlaOftPolicy, io: dict[str, Tensor]) -> None:
    """RLinf's layout; its value head reads the state of the prompt's last token."""
    logits = action_logits(policy, *inputs(io, "rlinf"))
    assert difference(logits, io["rlinf.action_logits_last256"]) <= TOLERANCE
    states = action_states(policy, *inputs(io, "rlinf"))
    assert difference(states[:, 0], io["rlinf.value_hidden"]) <= TOLERANCE


@torch.no_grad()
def test_training_loss_and_whole_vocabulary(l1_folder: Path, io: dict[str, Tensor]) -> None:
    policy = load(l1_folder, full_vocabulary=True)
    ids, mask, pixels, _ = inputs(io, "train")
    loss = training_loss(policy, ids, mask, pixels, io["train.labels"])
    assert difference(loss.view(1), io["train.loss"]) <= TOLERANCE
    case = "img2_prop"
    states = action_states(policy, *inputs(io, case))
    logits = policy.network.action_head(states)
    assert difference(logits[..., 32000:], io[f"{case}.logits_pad64"]) <= TOLERANCE
    assert difference(logits.logsumexp(-1), io[f"{case}.logits_logsumexp"]) <= TOLERANCE
    assert torch.equal(logits.argmax(-1), io[f"{case}.action_logits_argmax"])
    sliced = policy.network.action_logits(states)
    assert difference(sliced, io[f"{case}.action_logits_last256"]) <= TOLERANCE


@torch.no_grad()
def test_parity_depends_on_what_it_should(policy: OpenVlaOftPolicy, io: dict[str, Tensor]) -> None:
    """The bounds above would catch the known mistakes: each moves the logits by far more."""
    ids, mask, pixels, _ = inputs(io, "img1_noprop")
    expected = io["img1_noprop.action_logits_last256"]
    without_stop = action_logits(policy, ids, mask, pixels, stop_token=False)
    assert difference(without_stop, expected) > 1e-3
    swapped = torch.cat([pixels[:, 3:], pixels[:, :3]], dim=1)
    assert difference(action_logits(policy, ids, mask, swapped), expected) > 1e-3
    layers = policy.network.language_model.layers
    for layer in layers:
        layer.input_layernorm.variance_epsilon = 1e-5
    try:
        assert difference(action_logits(policy, ids, mask, pixels), expected) > TOLERANCE
    finally:
        for layer in layers:
            layer.input_layernorm.variance_epsilon = 1e-6
