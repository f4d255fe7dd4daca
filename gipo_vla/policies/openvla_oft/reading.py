"""From a folder in the published layout to a network: which file holds what, sizes, weights, adapter, heads.

Reading is strict. Names of transformers' modules have moved between releases, and a tensor that silently
stays random costs days, so every tensor of the folder must have a place and every place must be filled; the
error counts what does not fit, and its ``report`` lists all of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gipo_envs.errors import UserError, first_three
from gipo_vla.policies.openvla_oft.adapter_files import PublishedAdapter, read_adapter
from gipo_vla.policies.openvla_oft.build_network import place
from gipo_vla.policies.openvla_oft.checkpoint_files import (
    ADAPTER_FOLDER,
    TensorFiles,
    component_file,
    has_weights,
    open_weights,
    read_component,
    read_json,
    resolve_folder,
)
from gipo_vla.policies.openvla_oft.names import (
    DINO,
    SIGLIP,
    Layout,
    PublishedTensor,
    published_layout,
    to_native,
)
from gipo_vla.policies.openvla_oft.network import L1ActionHead, OpenVlaOftNetwork
from gipo_vla.policies.openvla_oft.settings import PATCH_SIZE, Architecture, TowerSettings
from gipo_vla.settings import registry

OWN_SECTION = "gipo_vla"
"""Key of ``config.json`` under which exports record what the published layout does not hold."""
KNOWN_HEADS = {1024: 16, 1152: 16}
"""Attention heads of the published towers by width: timm's names imply them, the files do not hold them."""
EXTRAS_FILE = "gipo_vla.safetensors"
"""What the published layout has no place for: value head, learned action queries."""
IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)
"""Buffers that older releases of transformers wrote."""
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

    @property
    def folders(self) -> tuple[Path, Path]:
        """Where small files are looked for: the folder, then its base's."""
        return self.folder, self.tensors.folder

    def file(self, name: str) -> Path | None:
        """A small file, if there is one."""
        return first_file(self.folders, name)


def first_file(folders: Sequence[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


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
    folders = (folder, weights_folder)
    config_path = first_file(folders, "config.json") or weights_folder / "config.json"
    config = read_json(config_path)
    if adapter is not None:
        adapter.check(tensors.shapes, adapter_folder)
    statistics_path = first_file(folders, "dataset_statistics.json")
    return Checkpoint(
        folder=folder,
        tensors=tensors,
        adapter=adapter,
        architecture=read_architecture(config_path.parent, config, tensors.shapes),
        statistics=read_json(statistics_path) if statistics_path else config.get("norm_stats") or {},
        statistics_file=str(statistics_path or config_path),
        own=config.get(OWN_SECTION) or {},
        proprio_file=component_file(folder, "proprio_projector"),
        l1_file=component_file(folder, "action_head"),
    )


@dataclass(frozen=True)
class LoadReport:
    """Every tensor of a folder that does not fit the network."""

    missing: tuple[str, ...]
    """Names that the network needs and the folder lacks."""
    unexpected: tuple[str, ...]
    """Names of the folder that mean nothing here."""
    misshapen: tuple[str, ...]
    """``name (folder's shape instead of the network's)``."""

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        """One line, three names of each kind."""
        kinds = self._kinds().items()
        return "; ".join(f"{len(names)} {kind}: {first_three(names)}" for kind, names in kinds if names)

    def table(self) -> str:
        """One line a tensor."""
        return "\n".join(f"{kind:<17}{name}" for kind, names in self._kinds().items() for name in names)

    def _kinds(self) -> dict[str, tuple[str, ...]]:
        return {"missing": self.missing, "unknown": self.unexpected, "of another shape": self.misshapen}


class CheckpointMismatch(UserError):  # noqa: N818 (named for what it tells the user)
    """A folder whose tensors do not fit; ``report`` holds every one of them."""

    def __init__(self, message: str, report: LoadReport) -> None:
        super().__init__(message)
        self.report = report


def compare(shapes: Mapping[str, tuple[int, ...]], layout: Layout) -> tuple[dict[str, str], LoadReport]:
    """Published name to the folder's name of it, and what does not fit.

    Dead tensors may be absent (some exports leave them out) but not misshapen.
    """
    found: dict[str, str] = {}
    missing, misshapen = [], []
    for name, entry in layout.items():
        present = next((alias for alias in (name, *entry.aliases) if alias in shapes), None)
        if present is None:
            if not entry.dead:
                missing.append(name)
        else:
            found[name] = present
            if shapes[present] != entry.shape:
                misshapen.append(f"{present} {shapes[present]} instead of {entry.shape}")
    known = set(found.values())
    unexpected = [name for name in shapes if name not in known and not name.endswith(IGNORED_SUFFIXES)]
    return found, LoadReport(tuple(missing), tuple(unexpected), tuple(misshapen))


def read_weights(
    network: OpenVlaOftNetwork,
    tensors: TensorFiles,
    device: torch.device,
    dtype: torch.dtype,
    adapter: PublishedAdapter | None = None,
) -> None:
    """Fill a network on the meta device, one tensor at a time, merging an adapter on the way.

    Raises:
        CheckpointMismatch: any tensor that does not fit.
    """
    layout = published_layout(network.architecture, network.full_vocabulary)
    found, report = compare(tensors.shapes, layout)
    if not report.fits:
        logger.error("tensors of %s that do not fit:\n%s", tensors.folder, report.table())
        raise CheckpointMismatch(
            f"{tensors.folder} does not fit the network ({report}): take a checkpoint of OpenVLA-OFT in the "
            "published layout and settings of its size",
            report,
        )
    for name, entry in layout.items():
        if entry.dead:
            continue
        tensor = tensors.read(found[name], device)
        if adapter is not None:
            tensor = adapter.merged(name, tensor)
        for native, part in to_native(tensor, entry):
            # A part of a larger tensor would keep all of it in memory: copy it out.
            place(network, native, part.contiguous().clone() if part is not tensor else part, device, dtype)


def read_architecture(
    folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Architecture:
    """Sizes of a checkpoint: from its tensors where they show, from ``config.json`` where they do not.

    Raises:
        UserError: tensors are missing, or the heads of a tower are recorded nowhere.
    """
    text: dict[str, Any] = config.get("text_config") or {}
    recorded: dict[str, Any] = (config.get(OWN_SECTION) or {}).get("architecture") or {}

    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise UserError(
                f"{folder} has no tensor {name}: it is no checkpoint in OpenVLA's published layout "
                "(a dinosiglip backbone is expected)"
            )
        return shapes[name]

    vocabulary, hidden = shape("language_model.model.embed_tokens.weight")
    layers = _count(shapes, "language_model.model.layers.")
    heads = int(text.get("num_attention_heads", recorded.get("heads", hidden // 128 or 1)))
    key_value = shape("language_model.model.layers.0.self_attn.k_proj.weight")[0] // (hidden // heads)
    default = Architecture()
    rope = text.get("rope_parameters") or {}

    def tower(prefix: str, name: str) -> TowerSettings:
        width = shape(f"{prefix}.pos_embed")[2]
        known = (recorded.get(name) or {}).get("heads") or KNOWN_HEADS.get(width)
        if known is None:
            known = heads
            logger.warning(
                "%s does not record the attention heads of its %s tower of width %d: assuming %d, as many as "
                "the language model's (record them as %s.architecture.%s.heads in config.json)",
                *(folder, name, width, heads, OWN_SECTION, name),
            )
        return TowerSettings(
            width,
            _count(shapes, f"{prefix}.blocks."),
            int(known),
            shape(f"{prefix}.blocks.0.mlp.fc1.weight")[0],
        )

    side = math.isqrt(shape(f"{DINO}.pos_embed")[1])
    return Architecture(
        image_size=side * PATCH_SIZE,
        dino=tower(DINO, "dino"),
        siglip=tower(SIGLIP, "siglip"),
        hidden=hidden,
        intermediate=shape("language_model.model.layers.0.mlp.gate_proj.weight")[0],
        layers=layers,
        heads=heads,
        key_value_heads=key_value,
        rms_norm_eps=float(text.get("rms_norm_eps", default.rms_norm_eps)),
        rope_theta=float(text.get("rope_theta") or rope.get("rope_theta") or default.rope_theta),
        vocabulary=vocabulary,
        prompt_end=int(recorded.get("prompt_end", default.prompt_end)),
    )


def _count(shapes: Mapping[str, Any], prefix: str) -> int:
    """Blocks of a stack: the highest index in its tensors' names, plus one."""
    indices = {int(name[len(prefix) :].partition(".")[0]) for name in shapes if name.startswith(prefix)}
    return max(indices, default=-1) + 1


def differences(settings: Architecture, checkpoint: Architecture) -> list[str]:
    """``name 48 instead of 4096`` for each size in which a checkpoint differs from the settings.

    The constants that no size depends on are the checkpoint's to say.
    """
    ours, theirs = registry.flat(asdict(settings)), registry.flat(asdict(checkpoint))
    return [
        f"{key} {value} instead of {ours[key]}"
        for key, value in theirs.items()
        if value != ours[key] and key not in {"rms_norm_eps", "rope_theta"}
    ]


def read_proprio_projector(
    network: OpenVlaOftNetwork, path: Path, device: torch.device, dtype: torch.dtype
) -> None:
    """Fill the proprio projector of a network on the meta device."""
    assert network.proprio_projector is not None
    state = read_component(path)
    _refuse_misfit(path, state, network.proprio_projector)
    for name, value in state.items():
        place(network, f"proprio_projector.{name}", value, device, dtype)


def proprio_size_of(path: Path) -> int:
    """R of a published proprio projector."""
    state = read_component(path)
    if "fc1.weight" not in state:
        raise UserError(f"{path} has no fc1.weight: it is no proprio projector of OpenVLA-OFT")
    return state["fc1.weight"].shape[1]


def read_l1_head(path: Path, width: int, device: torch.device, dtype: torch.dtype) -> L1ActionHead:
    """A published continuous action head.

    Raises:
        UserError: another kind of head (diffusion), or one for another width.
    """
    state = read_component(path)
    if "model.fc2.weight" not in state:
        raise UserError(
            f"{path} is no L1 regression head (it holds {', '.join(sorted(state)[:3])}, ...): diffusion "
            "heads are not supported; use a checkpoint with L1 regression or discrete tokens"
        )
    head = L1ActionHead(width, state["model.fc2.weight"].shape[0])
    _refuse_misfit(path, state, head)
    head.load_state_dict(state)
    return head.to(device, dtype)


def _refuse_misfit(path: Path, state: Mapping[str, Tensor], module: nn.Module) -> None:
    layout = {name: PublishedTensor(tuple(own.shape), (name,)) for name, own in module.named_parameters()}
    _, report = compare({name: tuple(own.shape) for name, own in state.items()}, layout)
    if not report.fits:
        raise CheckpointMismatch(
            f"{path} does not fit ({report}): take the file of the same checkpoint as the weights", report
        )
