"""DeepSpeed around a policy: parameter groups with rates and clips of their own, and their state by name.

What reinforcement (``learner.py``) and cloning (``gipo_vla.imitation.cloning``) share, so that a checkpoint
of either starts the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from gipo_envs.errors import UserError
from gipo_vla.distributed import group
from gipo_vla.learner.optimizer import GroupClippedAdamW
from gipo_vla.policies.base import Policy
from gipo_vla.policies.memory import MOST_IN_A_BUCKET


class EngineSettings(Protocol):
    """What an engine reads of its settings; see ``gipo_vla.settings.schema.LearnerSettings``."""

    @property
    def adam_beta1(self) -> float: ...
    @property
    def adam_beta2(self) -> float: ...
    @property
    def adam_epsilon(self) -> float: ...
    @property
    def zero_stage(self) -> Literal["auto", 1, 2]: ...


def build_optimizer(
    policy: Policy, settings: EngineSettings, rates: Mapping[str, float], clips: Mapping[str, float]
) -> GroupClippedAdamW:
    """AdamW over the policy's parameter groups.

    Args:
        rates: learning rate by name of the group (``policy``, ``value``).
        clips: greatest gradient norm, likewise.
    """
    groups = [
        {
            "name": name,
            "params": [parameter for _, parameter in parameters],
            "lr": rates[name],
            "base_lr": rates[name],
            "clip": clips[name],
        }
        for name, parameters in policy.parameter_groups().items()
        if parameters
    ]
    return GroupClippedAdamW(
        groups, betas=(settings.adam_beta1, settings.adam_beta2), eps=settings.adam_epsilon
    )


def build_engine(
    policy: nn.Module,
    optimizer: GroupClippedAdamW,
    settings: EngineSettings,
    device: torch.device,
    micro_batch: int,
    micro_batches: int,
) -> Any:
    """DeepSpeed's engine; calling it is calling ``policy.forward``.

    Args:
        micro_batch: of one rank, in whatever unit; DeepSpeed only keeps books of it.
        micro_batches: backward passes on each rank before the optimizer steps.

    Raises:
        UserError: a trained parameter is not float32 (see ``policies.precision``). ZeRO would turn a whole
            group to the widest dtype in it, away from the twin's, or step on a gradient that is not finite.
    """
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise UserError(
                f"the policy's parameter {name} trains in {str(parameter.dtype).removeprefix('torch.')}: "
                "what trains must be float32; cast it where it is used (policies.precision.compute_in)"
            )
    stage = settings.zero_stage
    if stage == "auto":
        stage = 1 if device.type == "cpu" else 2
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    engine, *_ = group.import_deepspeed().initialize(
        model=policy,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": micro_batches,
            # DeepSpeed allocates a whole bucket in any case, and adapters are a fraction of its default.
            "zero_optimization": {"stage": stage, "reduce_bucket_size": min(trained, MOST_IN_A_BUCKET)},
            # torch's own AdamW: DeepSpeed's compile for 45 s first.
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": 0.0,
            # Gradients are added up and reduced over ranks as they come: in float32.
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
            "steps_per_print": 2**31,
            # It would wait for the device twice a micro-batch, for a figure that nobody reads.
            "timers": {"throughput": {"enabled": False}},
        },
    )
    group.limit_waiting()
    optimizer.create_state()
    engine.optimizer._lazy_init_hp_params_optimizer_state()
    # Networks checkpoint activations only in training mode; none here has dropout.
    engine.train()
    return engine


def scale_learning_rates(optimizer: GroupClippedAdamW, factor: float) -> None:
    """Set every group's learning rate to ``factor`` times its own."""
    for param_group in optimizer.param_groups:
        param_group["lr"] = param_group["base_lr"] * factor


def optimizer_tensors(policy: Policy, optimizer: GroupClippedAdamW) -> dict[str, Tensor]:
    """float32 weights and moments by parameter name, whole on every rank (a collective call)."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    tensors = {}
    for name, parameter in _named_parameters(policy):
        tensors[f"weight/{name}"] = safe_get_full_fp32_param(parameter)
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}/{name}"] = safe_get_full_optimizer_state(parameter, moment)
    for param_group in optimizer.param_groups:
        tensors[f"step/{param_group['name']}"] = optimizer.state[param_group["params"][0]]["step"]
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def load_optimizer_tensors(
    policy: Policy, optimizer: GroupClippedAdamW, tensors: Mapping[str, Tensor], device: torch.device
) -> None:
    """Take back ``optimizer_tensors``, at any number of ranks.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor has another shape.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    for name, parameter in _named_parameters(policy):
        for kind in ("weight", "exp_avg", "exp_avg_sq"):
            if tensors[f"{kind}/{name}"].shape != parameter.shape:
                raise ValueError(
                    f"{kind}/{name} has shape {tuple(tensors[f'{kind}/{name}'].shape)}, the parameter "
                    f"{tuple(parameter.shape)}"
                )
        if (tensors[f"exp_avg_sq/{name}"] < 0).any():
            raise ValueError(f"exp_avg_sq/{name} has negative squares")
        weight = tensors[f"weight/{name}"].to(device)
        parameter.copy_(weight)
        safe_set_full_fp32_param(parameter, weight)
        for moment in ("exp_avg", "exp_avg_sq"):
            safe_set_full_optimizer_state(parameter, tensors[f"{moment}/{name}"].to(device), moment)
    for param_group in optimizer.param_groups:
        step = tensors[f"step/{param_group['name']}"]
        if step.shape != () or not 0 <= step.item() < 2**53:
            raise ValueError(f"step/{param_group['name']} is no count")
        for parameter in param_group["params"]:
            optimizer.state[parameter]["step"].copy_(step)


def _named_parameters(policy: Policy) -> Iterator[tuple[str, nn.Parameter]]:
    for parameters in policy.parameter_groups().values():
        yield from parameters
