"""Settings, a checkpoint and an environment to a policy.

``build`` is for runs: settings and environment must fit the checkpoint, and what does not is refused in one
line. ``load`` is for tools: a folder alone, whatever is in it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from gipo_envs import EnvironmentSpec
from gipo_envs.errors import UserError
from safetensors.torch import load_file
from tokenizers import Tokenizer

from gipo_vla.policies import lora
from gipo_vla.policies.openvla_oft import reading
from gipo_vla.policies.openvla_oft.adapter_files import PublishedAdapter, read_adapter
from gipo_vla.policies.openvla_oft.build_network import draw_weights, finish, network_on_meta, place
from gipo_vla.policies.openvla_oft.checkpoint_files import (
    ADAPTER_FOLDER,
    TensorFiles,
    component_file,
    has_weights,
    open_weights,
    read_json,
    resolve_folder,
)
from gipo_vla.policies.openvla_oft.names import published_layout
from gipo_vla.policies.openvla_oft.network import OpenVlaOftNetwork
from gipo_vla.policies.openvla_oft.normalization import Statistics, select_statistics
from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
from gipo_vla.policies.openvla_oft.prompt import read_tokenizer
from gipo_vla.policies.openvla_oft.settings import Architecture, OpenVlaOftSettings
from gipo_vla.policies.openvla_oft.tiny_tokenizer import tiny_tokenizer

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

    def recorded(self, name: str) -> Any:
        return self.own.get(name)


def open_checkpoint(name: str, base: str | None = None) -> Checkpoint:
    """Open a folder (or Hugging Face id) in the published layout.

    A folder with weights is merged: OpenVLA-OFT writes ``lora_adapter/`` beside the weights that it has
    already merged it into. A folder without has its adapter merged into the base while reading.

    Raises:
        UserError: whatever is missing, damaged or of another kind, in one line.
    """
    folder = resolve_folder(name)
    adapter = None
    weights_folder = folder
    adapter_folder = folder if (folder / "adapter_config.json").is_file() else folder / ADAPTER_FOLDER
    if has_weights(folder):
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


def build(
    settings: OpenVlaOftSettings,
    spec: EnvironmentSpec,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    cloning: bool = False,
) -> OpenVlaOftPolicy:
    """The policy that the settings describe, for an environment, on a device.

    Args:
        dtype: of the frozen weights (and of all but the heads under full fine-tuning); adapters have their own.
        cloning: the policy will be trained on demonstrations, so a checkpoint with a continuous head may be
            taken for its features.

    Raises:
        UserError: settings, checkpoint and environment do not go together.
    """
    device = torch.device(device)
    if settings.checkpoint is None:
        if not settings.random_weights:
            raise UserError(
                "policy.checkpoint is null: name a checkpoint in OpenVLA-OFT's layout, or set "
                "policy.random_weights=true to start from nothing"
            )
        return _assemble(_for_random(settings, spec), None, spec, device, dtype)
    checkpoint = open_checkpoint(settings.checkpoint, settings.base_checkpoint)
    wrong = reading.differences(settings.architecture, checkpoint.architecture)
    if wrong:
        raise UserError(
            f"{checkpoint.folder} is another size than policy.architecture ({', '.join(wrong[:3])}"
            f"{', ...' if len(wrong) > 3 else ''}): choose the policy config of its size"
        )
    settings = _for_checkpoint(settings, checkpoint, spec, cloning)
    return _assemble(settings, checkpoint, spec, device, dtype)


def load(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    unnorm_key: str | None = None,
    full_vocabulary: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> OpenVlaOftPolicy:
    """The policy in a folder of the published layout, with every weight trainable and no tasks yet.

    ``set_instructions`` gives it tasks to act on. What the folder does not say is the published default:
    chunks of 8, as many action dimensions as the statistics have (7 without).

    Raises:
        UserError: the folder cannot be read or does not fit.
    """
    checkpoint = open_checkpoint(str(folder), str(base) if base is not None else None)
    settings = OpenVlaOftSettings(
        architecture=checkpoint.architecture,
        checkpoint=str(folder),
        base_checkpoint=str(base) if base is not None else None,
        unnorm_key=unnorm_key if unnorm_key is not None else checkpoint.recorded("unnorm_key"),
        images=checkpoint.recorded("images"),
        proprio=checkpoint.proprio_file is not None,
        head="l1" if checkpoint.l1_file is not None else "tokens",
        chunk=checkpoint.recorded("chunk") or OpenVlaOftSettings.chunk,
        prompt=checkpoint.recorded("prompt") or OpenVlaOftSettings.prompt,
        stop_token=checkpoint.recorded("stop_token") is not False,
        gripper=checkpoint.recorded("gripper") or "auto",
        action_queries=checkpoint.recorded("action_queries") or "zeros",
        full_vocabulary=full_vocabulary,
        training="full",
    )
    return _assemble(settings, checkpoint, None, torch.device(device), dtype)


def _for_random(settings: OpenVlaOftSettings, spec: EnvironmentSpec) -> OpenVlaOftSettings:
    """Complete settings of a policy from nothing."""
    images, _ = _image_shape(spec, settings.architecture)
    if settings.images not in (None, images):
        raise UserError(
            f"policy.images is {settings.images}, but the environment gives {images} camera(s): make them equal"
        )
    if settings.unnorm_key is not None:
        raise UserError(
            f"policy.unnorm_key is {settings.unnorm_key!r} with policy.random_weights: there are no statistics; "
            "set it to null"
        )
    proprio = bool(settings.proprio)
    if proprio:
        _proprio_size(spec)
    return replace(settings, images=images, proprio=proprio, head="tokens")


def _for_checkpoint(
    settings: OpenVlaOftSettings, checkpoint: Checkpoint, spec: EnvironmentSpec, cloning: bool
) -> OpenVlaOftSettings:
    """Settings completed by what a checkpoint and an environment say, or refused."""
    folder = checkpoint.folder
    cameras, _ = _image_shape(spec, settings.architecture)
    images = checkpoint.recorded("images") or settings.images or cameras
    if settings.images not in (None, images):
        raise UserError(
            f"policy.images is {settings.images}, but {folder} was trained with {images} image(s): set "
            f"policy.images to {images} or null"
        )
    if images != cameras:
        raise UserError(
            f"{folder} looks at {images} image(s), but the environment gives {cameras}: name {images} camera(s) in "
            "env.camera.names"
        )
    has_projector = checkpoint.proprio_file is not None
    if settings.proprio and not has_projector:
        raise UserError(
            f"policy.proprio is true, but {folder} has no proprio_projector--*_checkpoint.pt: set it to "
            "false or null"
        )
    proprio = has_projector if settings.proprio is None else settings.proprio
    if has_projector and not proprio:
        raise UserError(
            f"policy.proprio is false, but {folder} was trained with proprioception "
            f"({checkpoint.proprio_file.name if checkpoint.proprio_file else ''}): set it to true or null"
        )
    if proprio:
        assert checkpoint.proprio_file is not None
        size, given = reading.proprio_size_of(checkpoint.proprio_file), _proprio_size(spec)
        if size != given:
            raise UserError(
                f"{checkpoint.proprio_file} reads {size} proprio values, the environment gives {given}: choose "
                "the environment that the checkpoint was trained for"
            )
    for name in ("chunk", "prompt", "stop_token", "action_queries"):
        recorded = checkpoint.recorded(name)
        if recorded is not None and recorded != getattr(settings, name):
            raise UserError(
                f"policy.{name} is {getattr(settings, name)!r}, but {folder} was trained with {recorded!r}: set "
                "it to that"
            )
    head = settings.head
    has_l1 = checkpoint.l1_file is not None
    if head == "l1" and not has_l1:
        raise UserError(
            f"policy.head is l1, but {folder} has no action_head--*_checkpoint.pt: set policy.head to tokens"
        )
    if cloning:
        head = "tokens"
    elif head == "tokens" and has_l1:
        raise UserError(
            f"policy.head is tokens, but {folder} was trained with an L1 head "
            f"({checkpoint.l1_file.name if checkpoint.l1_file else ''}) and its tokens are untrained: clone it "
            "with python -m gipo_vla.sft first, or evaluate it with policy.head=l1"
        )
    elif head == "auto":
        head = "l1" if has_l1 else "tokens"
    logger.info(
        "%s: %d image(s), proprio %s, head %s, as the checkpoint says", folder, images, proprio, head
    )
    key = settings.unnorm_key if settings.unnorm_key is not None else checkpoint.recorded("unnorm_key")
    return replace(settings, images=images, proprio=proprio, head=head, unnorm_key=key)


def _image_shape(spec: EnvironmentSpec, architecture: Architecture) -> tuple[int, int]:
    """Cameras and side of the images, checked against the network's input."""
    if "images" not in spec.observation:
        raise UserError(
            "policy openvla_oft needs images, but the environment gives "
            f"{', '.join(spec.observation) or 'nothing'}: add images to env.observations"
        )
    cameras, height, width, _ = spec.observation["images"].shape
    if (height, width) != (architecture.image_size, architecture.image_size):
        raise UserError(
            f"the environment's images are {height}x{width}, the network reads {architecture.image_size}x"
            f"{architecture.image_size}: set env.camera (height, width, format) to give that size"
        )
    return cameras, height


def _proprio_size(spec: EnvironmentSpec) -> int:
    if "proprio" not in spec.observation:
        raise UserError(
            "the policy reads proprioception, but the environment gives "
            f"{', '.join(spec.observation)}: add proprio to env.observations"
        )
    return spec.observation["proprio"].shape[0]


def _assemble(
    settings: OpenVlaOftSettings,
    checkpoint: Checkpoint | None,
    spec: EnvironmentSpec | None,
    device: torch.device,
    dtype: torch.dtype,
) -> OpenVlaOftPolicy:
    """Complete settings to a policy."""
    statistics: Statistics | None = None
    proprio_size: int | None = None
    if checkpoint is not None:
        statistics = select_statistics(
            checkpoint.statistics, settings.unnorm_key, checkpoint.statistics_file
        )
        if settings.proprio and checkpoint.proprio_file is not None:
            proprio_size = reading.proprio_size_of(checkpoint.proprio_file)
    elif settings.proprio and spec is not None:
        proprio_size = _proprio_size(spec)
    action_dims = spec.action_size if spec else len(statistics.action.low) if statistics else 7
    network = network_on_meta(settings, settings.chunk * action_dims, proprio_size)
    extras: dict[str, torch.Tensor] = {}
    l1_head = None
    tokenizer: Tokenizer
    if checkpoint is None:
        tokenizer = tiny_tokenizer(settings.architecture)
    else:
        tokenizer = read_tokenizer(_tokenizer_folder(checkpoint))
        reading.read_weights(network, checkpoint.tensors, device, dtype, checkpoint.adapter)
        if proprio_size is not None and checkpoint.proprio_file is not None:
            reading.read_proprio_projector(network, checkpoint.proprio_file, device, dtype)
        if checkpoint.l1_file is not None and settings.head == "l1":
            width = settings.architecture.hidden
            l1_head = reading.read_l1_head(checkpoint.l1_file, width, device, dtype)
        if checkpoint.extras_file is not None:
            extras = load_file(str(checkpoint.extras_file))
        if "network.action_queries" in extras and network.action_queries is not None:
            place(network, "action_queries", extras["network.action_queries"], device, dtype)
        checkpoint.tensors.close()
    draw_weights(network, device, dtype)
    finish(network, device)
    if settings.training == "lora":
        lora.inject(network, list(adapter_targets(network, settings.lora.towers)), settings.lora)
    policy = OpenVlaOftPolicy(
        settings,
        network,
        action_dims,
        tokenizer,
        statistics,
        l1_head,
        "l1" if settings.head == "l1" else "tokens",
    )
    policy.to(device)
    if l1_head is not None:
        l1_head.requires_grad_(False)
    _restore_value_head(policy, extras)
    if spec is not None:
        policy.set_instructions(spec.instructions)
    if settings.activation_checkpointing:
        _checkpoint_activations(network)
    policy.train()  # no dropout anywhere; transformers checkpoints activations in training mode only
    policy.compile_if_asked()
    logger.info("%s", policy.describe())
    return policy


def _tokenizer_folder(checkpoint: Checkpoint) -> Path:
    own = checkpoint.folder / "tokenizer.json"
    return checkpoint.folder if own.is_file() else checkpoint.tensors.folder


def _restore_value_head(policy: OpenVlaOftPolicy, extras: dict[str, torch.Tensor]) -> None:
    """Take over an exported value head if it is of the kind that the settings ask for."""
    prefix = "value_head."
    state = {name.removeprefix(prefix): value for name, value in extras.items() if name.startswith(prefix)}
    if not state:
        return
    expected = {name: value.shape for name, value in policy.value_head.state_dict().items()}
    if {name: value.shape for name, value in state.items()} == expected:
        policy.value_head.load_state_dict(state)
    else:
        logger.warning("the checkpoint's value head is of another kind or width: starting a new one")


def _checkpoint_activations(network: OpenVlaOftNetwork) -> None:
    for module in (network.language_model, network.vision.dino, network.vision.siglip):
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def adapter_targets(network: OpenVlaOftNetwork, towers: tuple[lora.Tower, ...]) -> Iterator[str]:
    """Names of the modules that get an adapter, for the parts of the network that the settings name."""
    for name, module in network.named_modules():
        if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            continue
        if isinstance(module, torch.nn.Conv2d):
            part: str = "patch_embeddings"
        elif name.startswith(("vision.", "projector.", "language_model.")):
            part = name.partition(".")[0]
        else:
            part = name
        if part in towers:
            yield name


def modules_of_layout(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Weight shapes of every published module that an adapter can be on."""
    return {
        name.removesuffix(".weight"): entry.shape
        for name, entry in published_layout(architecture).items()
        if name.endswith(".weight") and len(entry.shape) in (2, 4)
    }
