"""A checkpoint in the published layout, opened: which folder holds what, before any weight is read."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gipo_envs.errors import UserError
from gipo_vla.policies.openvla_oft import reading
from gipo_vla.policies.openvla_oft.adapter_files import PublishedAdapter, read_adapter
from gipo_vla.policies.openvla_oft.checkpoint_files import (
    ADAPTER_FOLDER,
    TensorFiles,
    component_file,
    has_weights,
    open_weights,
    read_json,
    resolve_folder,
)
from gipo_vla.policies.openvla_oft.settings import Architecture

EXTRAS_FILE = "gipo_vla.safetensors"
"""What the published layout has no place for: value head, learned action queries."""
logger = logging.getLogger(__name__)


@dataclass
class Checkpoint:
    """An opened folder: what it holds, before any tensor is read."""

    folder: Path
    tensors: TensorFiles
    adapter: PublishedAdapter | None
    architecture: Architecture
    statistics: dict[str, Any]
    statistics_file: str
    own: dict[str, Any]
    """What our own exports recorded in ``config.json``; empty for others' checkpoints."""
    proprio_file: Path | None
    l1_file: Path | None
    extras_file: Path | None


def open_checkpoint(name: str, base: str | None = None) -> Checkpoint:
    """Open a folder (or Hugging Face id) in the published layout.

    A folder with weights is merged: OpenVLA-OFT writes ``lora_adapter/`` beside the weights that it has
    already merged it into. A folder without has its adapter merged into the base while reading.

    Raises:
        UserError: whatever is missing, damaged or of another kind, in one line.
    """
    folder = resolve_folder(name)
    adapter = None
    adapter_folder = folder / ADAPTER_FOLDER
    named_adapter = (folder / "adapter_config.json").is_file()
    if named_adapter:  # the adapter itself was named: the small files are in the folder around it
        adapter_folder = folder
        folder = folder.parent if (folder.parent / "config.json").is_file() else folder
    weights_folder = folder
    if has_weights(folder) and not named_adapter:
        if base is not None:
            raise UserError(
                f"policy.base_checkpoint is {base!r}, but {folder} already holds merged weights: set "
                "policy.base_checkpoint to null"
            )
        if adapter_folder.is_dir():
            logger.info("%s is part of the weights beside it already: not read", adapter_folder)
    elif adapter_folder.is_dir():
        adapter = read_adapter(adapter_folder)
        named = base or adapter.base
        if not named:
            raise UserError(
                f"{folder} holds only an adapter and does not name its base: set policy.base_checkpoint"
            )
        weights_folder = resolve_folder(named, "policy.base_checkpoint")
    tensors = open_weights(weights_folder)
    config_folder = folder if (folder / "config.json").is_file() else weights_folder
    config = read_json(config_folder / "config.json")
    own = config.get(reading.OWN_SECTION) or {}
    if adapter is not None:
        modules = {
            module: shape
            for name, shape in tensors.shapes.items()
            if (module := name.removesuffix(".weight")) != name
        }
        adapter.check(modules, adapter_folder)

    def beside(file: str) -> Path | None:
        """A small file of the folder, else of the base's."""
        return next((path / file for path in (folder, weights_folder) if (path / file).is_file()), None)

    statistics_path = beside("dataset_statistics.json")
    return Checkpoint(
        folder=folder,
        tensors=tensors,
        adapter=adapter,
        architecture=reading.read_architecture(config_folder, tensors),
        statistics=read_json(statistics_path) if statistics_path else config.get("norm_stats") or {},
        statistics_file=str(statistics_path or config_folder / "config.json"),
        own=own,
        proprio_file=component_file(folder, "proprio_projector"),
        l1_file=component_file(folder, "action_head"),
        extras_file=beside(EXTRAS_FILE),
    )
