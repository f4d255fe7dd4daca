"""A policy's own part of a checkpoint: trainable tensors and normalisation statistics, by name; and which
checkpoint a user means by a path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gipo_envs.errors import UserError
from gipo_vla import foreign
from gipo_vla.checkpoint import folder as folders
from gipo_vla.telemetry.console import say

POLICY_FILE = "policy.safetensors"
STATISTICS_FILE = "dataset_statistics.json"
"""In OpenVLA's format, for policies that normalise by their demonstrations' statistics."""


def policy_tensors(policy: nn.Module) -> dict[str, Tensor]:
    """Everything that training changes: trainable parameters and persistent buffers; copies on the CPU."""
    state = policy.state_dict()
    buffers = state.keys() - dict(policy.named_parameters(remove_duplicate=False)).keys()
    return trainable_tensors(policy) | {name: _copy(state[name]) for name in sorted(buffers)}


def trainable_tensors(policy: nn.Module, names: set[str] | None = None) -> dict[str, Tensor]:
    """Copies on the CPU of the trainable parameters, or of those with these names (a twin's are frozen)."""
    return {
        name: _copy(parameter)
        for name, parameter in policy.named_parameters()
        if (parameter.requires_grad if names is None else name in names)
    }


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


@torch.no_grad()
def load_policy(policy: nn.Module, folder: Path) -> None:
    """Read a checkpoint's tensors into a policy of the same settings. Raises UserError: names or shapes
    differ; says which."""
    stored = foreign.read_tensors(folder / POLICY_FILE)
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
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{folder / POLICY_FILE}: {name} holds values that are no numbers")
        state[name].copy_(tensor)


def read_statistics(folder: Path) -> dict[str, Any] | None:
    """The statistics in a checkpoint, or in the newest of a folder of checkpoints that has some (they are the
    same throughout a run); None if there are none. Raises UserError: the file is damaged."""
    candidates = [folder / STATISTICS_FILE, *sorted(folder.glob(f"[0-9]*/{STATISTICS_FILE}"), reverse=True)]
    found = next((path for path in candidates if os.path.lexists(path)), None)
    return None if found is None else foreign.read_json(found)


def find_checkpoint(path: Path, setting: str = "checkpoint") -> Path:
    """The folder of the checkpoint that ``setting=path`` names.

    Args:
        path: a run folder, of which the newest usable checkpoint is taken, or one checkpoint's folder.
        setting: for messages.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if not path.is_dir():
        raise UserError(f"{setting}={path} is no folder: give a run folder or one of its checkpoints")
    foreign.check_folder(path)
    if (path / POLICY_FILE).exists():
        if problem := folders.damage(path):
            raise UserError(f"{setting}={path} is damaged: {problem}")
        return path
    if not (path / "checkpoints").is_dir():
        raise UserError(
            f"{setting}={path} holds no checkpoints/: give a run folder or one of its checkpoints"
        )
    found, problems = folders.newest_valid(path / "checkpoints")
    for problem in problems:
        say(f"passed over a damaged checkpoint: {problem}")
    return found
