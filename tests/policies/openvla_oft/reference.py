"""The original's own entry points on tokenised, normalised inputs, for comparison with what it returns.

They accept what the original code accepts (prompts padded on the right or on the left, training batches with
the action ids in place).

Shape suffixes: B batch, L tokens of an input row, N action positions, C cameras, H height and width, R
proprioception, V vocabulary.
"""

from __future__ import annotations

from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
from gipo_vla.policies.openvla_oft.text import pad_prompts

IGNORED_LABEL = -100


def realign(input_ids: Tensor, attention_mask: Tensor, pad_id: int) -> tuple[Tensor, Tensor | None]:
    """The layout above for ids (B, L) that are padded anywhere."""
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids.cpu(), attention_mask.cpu())]
    ids, mask = pad_prompts(rows, pad_id)
    return ids.to(input_ids.device), None if mask is None else mask.to(input_ids.device)


def action_logits(
    policy: OpenVlaOftPolicy,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_values: Tensor,
    proprio: Tensor | None = None,
    stop_token: bool | None = None,
) -> Tensor:
    """Logits float32 (B, N, 256) of the action ids (31744..31999 of the published vocabulary), ascending."""
    inputs = (input_ids, attention_mask, pixel_values, proprio, stop_token)
    return policy.network.action_logits(action_states(policy, *inputs))


def action_states(
    policy: OpenVlaOftPolicy,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_values: Tensor,
    proprio: Tensor | None = None,
    stop_token: bool | None = None,
) -> Tensor:
    """Hidden states (B, N, E) that the actions are read from.

    Args:
        input_ids: int64 (B, L): prompts, or prompts with the N action ids and ``</s>`` behind them.
        attention_mask: (B, L), 0 on padding.
        pixel_values: (B, 6C, H, H), normalised.
        proprio: (B, R), normalised.
        stop_token: whether ``</s>`` ends the sequence. None: yes, as in OpenVLA-OFT; but not for prompts
            padded on the left, which is RLinf's layout and has none.
    """
    if stop_token is None:
        last_kept = bool(attention_mask[:, -1].all())
        stop_token = not (last_kept and not attention_mask.all())
    with mock.patch.object(policy.network, "stop_token", stop_token):
        ids, mask = _prompts(policy, input_ids, attention_mask.bool())
        return policy.network(ids, mask, policy.network.patch_features(pixel_values), proprio)


def training_loss(
    policy: OpenVlaOftPolicy,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_values: Tensor,
    labels: Tensor,
) -> Tensor:
    """The original's cloning loss (): cross-entropy over the whole vocabulary of the actions and ``</s>``.

    Labels (B, L) are -100 on everything else.
    """
    network = policy.network
    assert network.full_vocabulary and network.stop_token
    ids, mask = _prompts(policy, input_ids, attention_mask.bool())
    hidden = network.hidden_states(ids, mask, network.patch_features(pixel_values))
    # The state behind the last action's predicts the stop token.
    logits = network.action_head(hidden[:, -network.action_positions - 2 : -1]).float()
    targets = torch.stack([row[row != IGNORED_LABEL] for row in labels])  # (B, N + 1)
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _prompts(policy: OpenVlaOftPolicy, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Prompts as the network reads them, and their mask."""
    architecture = policy.settings.architecture
    is_action = (input_ids >= architecture.first_action_id) & (input_ids < architecture.pad_id) & mask
    if is_action.any():  # a training batch: the network has its own action positions and stop token
        first_action = is_action.int().argmax(dim=1, keepdim=True)
        mask = mask & (torch.arange(mask.shape[1], device=mask.device) < first_action)
    return realign(input_ids, mask, architecture.pad_id)
