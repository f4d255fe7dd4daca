"""A policy's own part of a checkpoint: trainable tensors and normalisation statistics, by name."""

from __future__ import annotations

from pathlib import Path

import torch
from gipo_envs.errors import UserError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

POLICY_FILE = "policy.safetensors"


def policy_tensors(policy: nn.Module) -> dict[str, Tensor]:
    """Everything that training changes: trainable parameters and persistent buffers, on the CPU."""
    buffers = policy.state_dict().keys() - dict(policy.named_parameters()).keys()
    state = policy.state_dict()
    trainable = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    return {name: state[name].detach().cpu().contiguous() for name in [*trainable, *sorted(buffers)]}


def save_policy(policy: nn.Module, folder: Path) -> None:
    save_file(policy_tensors(policy), folder / POLICY_FILE)


@torch.no_grad()
def load_policy(policy: nn.Module, folder: Path) -> None:
    """Read back what ``save_policy`` wrote, into a policy of the same settings.

    Raises:
        UserError: names or shapes differ; says which.
    """
    stored = load_file(folder / POLICY_FILE)
    expected = policy_tensors(policy)
    for name in sorted(stored.keys() ^ expected.keys()):
        where = "the checkpoint has no" if name in expected else "this policy has no"
        raise UserError(f"{folder / POLICY_FILE}: {where} {name}; was it written with another policy?")
    state = policy.state_dict()
    for name, tensor in stored.items():
        if tensor.shape != state[name].shape:
            raise UserError(
                f"{folder / POLICY_FILE}: {name} has shape {tuple(tensor.shape)}, this policy's is "
                f"{tuple(state[name].shape)}; was it written with another policy size?"
            )
        state[name].copy_(tensor)
