"""Do settings, checkpoint and environment go together? Completed settings, or one line that says why not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from gipo_envs import EnvironmentSpec
from gipo_envs.errors import UserError, first_three
from gipo_vla.policies.openvla_oft import reading
from gipo_vla.policies.openvla_oft.reading import Checkpoint
from gipo_vla.policies.openvla_oft.settings import Architecture, OpenVlaOftSettings

logger = logging.getLogger(__name__)


def for_random_weights(
    settings: OpenVlaOftSettings, spec: EnvironmentSpec, statistics: Mapping[str, Any] | None
) -> OpenVlaOftSettings:
    """Complete settings of a policy from nothing.

    Raises:
        UserError: they do not fit the environment.
    """
    images = camera_count(spec, settings.architecture)
    if settings.images not in (None, images):
        raise UserError(
            f"policy.images is {settings.images}, but the environment gives {images} camera(s): "
            "make them equal"
        )
    if settings.unnorm_key is not None and statistics is None:
        raise UserError(
            f"policy.unnorm_key is {settings.unnorm_key!r} with policy.random_weights: there are no "
            "statistics; set it to null"
        )
    if settings.proprio:
        proprio_size(spec)
    return replace(settings, images=images, proprio=bool(settings.proprio), head="tokens")


def for_checkpoint(
    settings: OpenVlaOftSettings, checkpoint: Checkpoint, spec: EnvironmentSpec, cloning: bool
) -> OpenVlaOftSettings:
    """Settings completed by what a checkpoint and an environment say.

    Raises:
        UserError: the three do not go together.
    """
    wrong = reading.differences(settings.architecture, checkpoint.architecture)
    if wrong:
        raise UserError(
            f"{checkpoint.folder} is of another size than policy.architecture ({first_three(wrong)}): choose "
            "the policy config of its size"
        )
    for name in ("chunk", "prompt", "stop_token", "action_queries", "images"):
        recorded, given = checkpoint.own.get(name), getattr(settings, name)
        if recorded is not None and given not in (None, recorded):
            raise UserError(
                f"policy.{name} is {given!r}, but {checkpoint.folder} was trained with {recorded!r}: set "
                f"policy.{name} to that"
            )
    completed = replace(
        settings,
        architecture=checkpoint.architecture,
        images=_images(settings, checkpoint, spec),
        proprio=_proprio(settings, checkpoint, spec),
        head=_head(settings, checkpoint, cloning),
        unnorm_key=settings.unnorm_key or checkpoint.own.get("unnorm_key"),
    )
    logger.info(
        "%s: %s image(s), proprio %s, head %s",
        *(checkpoint.folder, completed.images, completed.proprio, completed.head),
    )
    return completed


def camera_count(spec: EnvironmentSpec, architecture: Architecture) -> int:
    """Images an observation has, whose size must be the network's."""
    cameras, height, width, _ = _observed_shape(spec, "images")
    side = architecture.image_size
    if (height, width) != (side, side):
        raise UserError(
            f"the environment's images are {height}x{width}, the network reads {side}x{side}: set env.camera "
            "(height, width, format) to give that size"
        )
    return cameras


def proprio_size(spec: EnvironmentSpec) -> int:
    """Proprioception values an observation has."""
    return _observed_shape(spec, "proprio")[0]


def _observed_shape(spec: EnvironmentSpec, name: str) -> tuple[int, ...]:
    if name not in spec.observation:
        raise UserError(
            f"policy openvla_oft reads {name}, but the environment gives "
            f"{', '.join(spec.observation) or 'nothing'}: add {name} to env.observations"
        )
    return spec.observation[name].shape


def _images(settings: OpenVlaOftSettings, checkpoint: Checkpoint, spec: EnvironmentSpec) -> int:
    cameras = camera_count(spec, settings.architecture)
    recorded: int | None = checkpoint.own.get("images")
    if recorded is None:
        logger.warning(
            "%s does not record how many images it was trained with: taking %d. OpenVLA-OFT's LIBERO "
            "checkpoints have 2 (and proprioception), RLinf's and SimpleVLA-RL's have 1",
            *(checkpoint.folder, settings.images or cameras),
        )
    images = recorded or settings.images or cameras
    if images != cameras:
        raise UserError(
            f"{checkpoint.folder} looks at {images} image(s), but the environment gives {cameras}: name "
            f"{images} camera(s) in env.camera.names"
        )
    return images


def _proprio(settings: OpenVlaOftSettings, checkpoint: Checkpoint, spec: EnvironmentSpec) -> bool:
    file = checkpoint.proprio_file
    if file is None:
        if settings.proprio:
            raise UserError(
                f"policy.proprio is true, but {checkpoint.folder} has no proprio_projector--*_checkpoint.pt: "
                "set it to false or null"
            )
        return False
    if settings.proprio is False:
        raise UserError(
            f"policy.proprio is false, but {checkpoint.folder} was trained with proprioception "
            f"({file.name}): set it to true or null"
        )
    size, given = reading.proprio_size_of(file), proprio_size(spec)
    if size != given:
        raise UserError(
            f"{file} reads {size} proprio values, the environment gives {given}: choose the environment that "
            "the checkpoint was trained for"
        )
    return True


def _head(settings: OpenVlaOftSettings, checkpoint: Checkpoint, cloning: bool) -> Literal["tokens", "l1"]:
    file = checkpoint.l1_file
    if cloning:
        return "tokens"
    if settings.head == "l1" and file is None:
        raise UserError(
            f"policy.head is l1, but {checkpoint.folder} has no action_head--*_checkpoint.pt: set "
            "policy.head to tokens"
        )
    if settings.head == "tokens" and file is not None:
        raise UserError(
            f"policy.head is tokens, but {checkpoint.folder} was trained with an L1 head ({file.name}) and "
            "its tokens are untrained: clone it with python -m gipo_vla.sft first, or evaluate it with "
            "policy.head=l1"
        )
    return "tokens" if file is None else "l1"
