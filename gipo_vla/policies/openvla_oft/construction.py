"""Settings, a checkpoint and an environment to a policy.

``build`` is for runs: settings and environment must fit the checkpoint, and what does not is refused in one
line. ``load`` is for tools: a folder alone, whatever is in it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from gipo_envs import EnvironmentSpec
from gipo_envs.errors import UserError
from gipo_vla.policies import lora
from gipo_vla.policies.openvla_oft import fitting, reading
from gipo_vla.policies.openvla_oft.build_network import draw_weights, finish, network_on_meta, place
from gipo_vla.policies.openvla_oft.network import OpenVlaOftNetwork
from gipo_vla.policies.openvla_oft.normalization import select_statistics
from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
from gipo_vla.policies.openvla_oft.reading import EXTRAS_FILE, Checkpoint, open_checkpoint
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings
from gipo_vla.policies.openvla_oft.text import TOKENIZER_FILE, read_tokenizer, tiny_tokenizer
from gipo_vla.policies.precision import compute_in
from gipo_vla.policies.value_heads import ValueHeadSettings

logger = logging.getLogger(__name__)


def build(
    settings: OpenVlaOftSettings,
    spec: EnvironmentSpec,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    cloning: bool = False,
    statistics: Mapping[str, Any] | None = None,
    reinforced: bool = False,
) -> OpenVlaOftPolicy:
    """The policy that the settings describe, for an environment, on a device.

    Args:
        dtype: what the network computes in, and of its frozen weights. What trains is float32, and so are
            action and value heads.
        cloning: the policy will be trained on demonstrations, so a checkpoint with a continuous head may be
            taken for its features.
        statistics: entries as in ``dataset_statistics.json``, in place of the checkpoint's (a policy that is
            about to be cloned from other data).
        reinforced: the policy will be sampled from and reinforced, so a checkpoint that acts through a
            continuous head is refused, before its weights are read.

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
        settings = fitting.for_random_weights(settings, spec, statistics)
        return _assemble(settings, None, spec, device, dtype, statistics)
    checkpoint = open_checkpoint(settings.checkpoint, settings.base_checkpoint)
    settings = fitting.for_checkpoint(settings, checkpoint, spec, cloning)
    if reinforced:
        settings.require_tokens()
    if not (statistics or checkpoint.statistics or checkpoint.own):
        raise UserError(
            f"{checkpoint.folder} has neither dataset_statistics.json nor norm_stats in config.json, so its "
            "actions cannot be un-normalised: copy dataset_statistics.json from where it was trained"
        )
    return _assemble(settings, checkpoint, spec, device, dtype, statistics)


def load(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    unnorm_key: str | None = None,
    full_vocabulary: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> OpenVlaOftPolicy:
    """The policy in a folder of the published layout, with every weight in ``dtype`` and no tasks yet.

    Only in float32 can it be trained.

    ``set_instructions`` gives it tasks to act on. What the folder does not say is the published default:
    chunks of 8, as many action dimensions as the statistics have (7 without any).

    Raises:
        UserError: the folder cannot be read or does not fit.
    """
    base = None if base is None else str(base)
    checkpoint = open_checkpoint(str(folder), base)
    own = checkpoint.own
    recorded = ("images", "chunk", "prompt", "stop_token", "gripper", "action_queries")
    settings = OpenVlaOftSettings(
        **{name: own[name] for name in recorded if own.get(name) is not None},
        architecture=checkpoint.architecture,
        checkpoint=str(folder),
        base_checkpoint=base,
        unnorm_key=unnorm_key if unnorm_key is not None else own.get("unnorm_key"),
        proprio=checkpoint.proprio_file is not None,
        head="l1" if checkpoint.l1_file is not None else "tokens",
        full_vocabulary=full_vocabulary,
        training="full",
        value=ValueHeadSettings(**own.get("value", {})),
    )
    return _assemble(settings, checkpoint, None, torch.device(device), dtype, trains=False)


def _assemble(
    settings: OpenVlaOftSettings,
    checkpoint: Checkpoint | None,
    spec: EnvironmentSpec | None,
    device: torch.device,
    dtype: torch.dtype,
    entries: Mapping[str, Any] | None = None,
    trains: bool = True,
) -> OpenVlaOftPolicy:
    """Complete settings to a policy."""
    # Weights that train are float32 whatever the network computes in; see ``policies.precision``.
    whole = trains and settings.training == "full"
    arithmetic, dtype = dtype, torch.float32 if whole else dtype
    source = "the given statistics"
    if entries is None and checkpoint is not None:
        entries, source = checkpoint.statistics, checkpoint.statistics_file
    statistics = select_statistics(entries or {}, settings.unnorm_key, source)
    proprio_file = checkpoint.proprio_file if checkpoint is not None and settings.proprio else None
    proprio_size: int | None = None
    if proprio_file is not None:
        proprio_size = reading.proprio_size_of(proprio_file)
    elif checkpoint is None and settings.proprio and spec is not None:
        proprio_size = fitting.proprio_size(spec)
    if spec is not None:
        action_dims = spec.action_size
    else:
        recorded = checkpoint.own.get("action_dims") if checkpoint is not None else None
        action_dims = recorded or (len(statistics.action.low) if statistics else 7)
    network = network_on_meta(settings, settings.chunk * action_dims, proprio_size)
    extras: dict[str, torch.Tensor] = {}
    l1_head = None
    if checkpoint is None:
        tokenizer: Tokenizer | None = tiny_tokenizer(settings.architecture)
    else:
        tokenizer = _tokenizer(checkpoint, required=spec is not None)
        reading.read_weights(network, checkpoint.tensors, device, dtype, checkpoint.adapter)
        if proprio_file is not None:
            reading.read_proprio_projector(network, proprio_file, device, dtype)
        if checkpoint.l1_file is not None and settings.head == "l1":
            width = settings.architecture.hidden
            l1_head = reading.read_l1_head(checkpoint.l1_file, width, device, dtype)
        extras_file = checkpoint.file(EXTRAS_FILE)
        if extras_file is not None:
            extras = load_file(str(extras_file))
        if "network.action_queries" in extras and network.action_queries is not None:
            place(network, "action_queries", extras["network.action_queries"], device, dtype)
        checkpoint.tensors.close()
    draw_weights(network, device, dtype)
    finish(network, device)
    if whole:
        compute_in(network, arithmetic)
    if settings.training == "lora":
        lora.inject(network, list(adapter_targets(network, settings.lora.towers)), settings.lora)
    policy = OpenVlaOftPolicy(settings, network, action_dims, tokenizer, statistics, entries, l1_head)
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


def _tokenizer(checkpoint: Checkpoint, required: bool) -> Tokenizer | None:
    """The folder's tokenizer, else its base's; a tool that brings its own token ids needs none."""
    found = checkpoint.file(TOKENIZER_FILE)
    if found is None and not required:
        return None
    return read_tokenizer(found.parent if found else checkpoint.folder)


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
    """Recompute each block's activations in the backward pass (the reentrant form would drop the gradients
    of adapters, whose inputs need none). A tower without gradients keeps none to begin with."""
    for module in (network.language_model, network.vision.dino, network.vision.siglip):
        if not any(parameter.requires_grad for parameter in module.parameters()):
            continue
        # Renamed within transformers 5; the old name warns.
        enable = getattr(module, "activation_checkpointing_enable", None)
        # Nothing here draws, so there is no state of a generator to bring back.
        (enable or module.gradient_checkpointing_enable)(
            {"use_reentrant": False, "preserve_rng_state": False}
        )


def adapter_targets(network: OpenVlaOftNetwork, towers: tuple[lora.Tower, ...]) -> Iterator[str]:
    """Names of the modules that get an adapter, for the parts of the network that the settings name."""
    for name, module in network.named_modules():
        part = "patch_embeddings" if isinstance(module, torch.nn.Conv2d) else name.partition(".")[0]
        if part in towers and isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            yield name
