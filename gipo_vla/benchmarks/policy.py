"""What a vision-language-action policy costs on a device: decisions acted, samples trained, memory, and the
share of the device's peak.

No checkpoint is needed: the arithmetic does not depend on the values of the weights. The share of the matrix
peak counts matrix multiplications only, against the dense peak in the card's data sheet where the card is
known, and against a large matrix product measured here where it is not.

The figures include the numerical floor of every log-ratio (``policies.numerical_floor``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gipo_envs.errors import UserError
from gipo_envs.protocol import ArraySpec, EnvironmentSpec
from gipo_vla.assembly import environment_spec
from gipo_vla.benchmarks import Options
from gipo_vla.benchmarks.timing import device_name, rate
from gipo_vla.distributed.group import choose_device
from gipo_vla.policies.base import Observations, network_dtype
from gipo_vla.policies.memory import DtypeName, Work
from gipo_vla.policies.numerical_floor import floor_metrics, log_ratio_floor
from gipo_vla.policies.openvla_oft.construction import build
from gipo_vla.policies.openvla_oft.memory import plan_memory, sample_of, tokens_per_sample
from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings
from gipo_vla.run.memory import peak_resident_bytes
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.console import figures_table

BFLOAT16_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}
"""Dense bfloat16 operations a second from NVIDIA's data sheets, by part of the device's name."""
INSTRUCTIONS = ("pick up the black bowl between the plate and the ramekin and place it on the plate",)
PROPRIO_SIZE = 8
"""Of LIBERO and Bridge, for policies that read proprioception."""
GIB = 2**30
FLOOR_LABELS = {"mean": "mean", "p99": "p99", "p999": "p99.9", "max": "max"}
OTHER_DTYPE = {torch.bfloat16: torch.float32, torch.float32: torch.bfloat16}


def run(settings: TrainingSettings, options: Options) -> dict[str, Any]:
    """Measure the configured network on random observations.

    Raises:
        UserError: the policy is no vision-language-action network.
    """
    if not isinstance(settings.policy, OpenVlaOftSettings):
        raise UserError(
            "benchmark policy measures vision-language-action networks: add policy=openvla_oft_tiny"
        )
    torch.set_num_threads(settings.learner.threads)
    device = choose_device(settings.learner.device)
    dtype = network_dtype(settings.learner.precision, device)
    trial = Trial(
        settings.policy,
        device,
        options.act_batch,
        options.micro_batch,
        settings.rollout.temperature,
        environment_spec(settings).action_size,
    )
    figures = trial.measure(dtype, options.seconds)
    # One model after the other: two of seven billion parameters need not fit.
    other = OTHER_DTYPE[dtype]
    figures["numerical_floor"][_name(other)] = trial.floor(trial.build(other))
    _show(figures)
    return figures


@dataclass(frozen=True)
class Trial:
    """A network and the random observations that it is tried on."""

    settings: OpenVlaOftSettings
    device: torch.device
    act_batch: int
    micro_batch: int
    temperature: float
    action_size: int

    @property
    def spec(self) -> EnvironmentSpec:
        """An environment that exists only on paper, with one task of the usual length of instruction."""
        size, cameras = self.settings.architecture.image_size, self.settings.images or 1
        observation = {
            "images": ArraySpec((cameras, size, size, 3), "uint8"),
            "task": ArraySpec((), "int64"),
        }
        if self.settings.proprio:
            observation["proprio"] = ArraySpec((PROPRIO_SIZE,), "float32")
        return EnvironmentSpec(
            tasks=("benchmark",),
            instructions=INSTRUCTIONS,
            observation=observation,
            action_size=self.action_size,
            step_limit=220,
            action_repeat=1,
            end_on_success=True,
            reward_scale=1.0,
            frames_per_second=20.0,
        )

    def observations(self, batch: int) -> Observations:
        """Return random pixels and proprioception."""
        generator = torch.Generator().manual_seed(0)
        shape = (batch, *self.spec.observation["images"].shape)
        observations = {
            "images": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
            "task": torch.zeros(batch, dtype=torch.int64),
        }
        if self.settings.proprio:
            observations["proprio"] = torch.randn(batch, PROPRIO_SIZE, generator=generator)
        return {name: value.to(self.device) for name, value in observations.items()}

    def build(self, dtype: torch.dtype) -> OpenVlaOftPolicy:
        """Build the network, with the weights that its settings name."""
        return build(self.settings, self.spec, self.device, dtype)

    def floor(self, policy: OpenVlaOftPolicy) -> dict[str, float]:
        """Return the floor of |log rho|: acted on the whole batch, evaluated in micro-batches."""
        observations = self.observations(self.act_batch)
        floor = log_ratio_floor(policy.twin(), policy, observations, self.micro_batch, self.temperature)
        return floor_metrics(floor)

    def measure(self, dtype: torch.dtype, seconds: float) -> dict[str, Any]:
        """Act and train on random observations, each for about so many seconds, and return the figures."""
        device, policy, on_gpu = self.device, self.build(dtype), self.device.type == "cuda"
        sample = replace(sample_of(self.settings, self.spec), prompt_tokens=policy.prompt_ids.shape[1])
        many, few = self.observations(self.act_batch), self.observations(self.micro_batch)
        tokens = policy.act(few, self.temperature).tokens
        temperatures = torch.full((self.micro_batch,), self.temperature, device=device)

        def act() -> None:
            policy.act(many, self.temperature)

        def train() -> None:
            evaluation = policy(few, tokens, temperatures)
            (evaluation.values.mean() - evaluation.log_probs.mean() - evaluation.entropies.mean()).backward()
            policy.zero_grad(set_to_none=True)

        peak, source = matrix_peak(device, dtype)
        act_share, train_share = matrix_operations(act) / peak, matrix_operations(train) / peak
        acts = rate(act, seconds)
        floor = self.floor(policy)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        trains = rate(train, seconds)
        plan = plan_memory(self.settings, Work(self.micro_batch, dtype=_name(dtype)), sample)
        return {
            "device": device_name(device),
            "dtype": _name(dtype),
            "parameters": sum(p.numel() for p in policy.parameters()),
            "trainable_parameters": sum(p.numel() for p in policy.parameters() if p.requires_grad),
            "tokens_per_sample": tokens_per_sample(self.settings, sample),
            "act_batch": self.act_batch,
            "decisions_per_second": acts * self.act_batch,
            "act_peak_share": acts * act_share,
            "micro_batch": self.micro_batch,
            "samples_per_second": trains * self.micro_batch,  # without optimiser steps
            "train_peak_share": trains * train_share,
            "matrix_peak": peak,  # operations a second
            "matrix_peak_source": source,
            "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else peak_resident_bytes(),
            # Weights, gradients and activations; there is no optimiser and no twin here.
            "planned_memory_bytes": plan.total - plan.twin - plan.optimizer - plan.overhead,
            "numerical_floor": {_name(dtype): floor},
        }


def matrix_operations(call: Callable[[], None]) -> int:
    """Return the floating-point operations of a call, as torch counts them over its matrix products; a
    multiply-add counts as two."""
    # Fused kernels of attention are not counted on every device, its plain products are.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _name(dtype: torch.dtype) -> DtypeName:
    return "bfloat16" if dtype == torch.bfloat16 else "float32"


def matrix_peak(device: torch.device, dtype: torch.dtype) -> tuple[float, Literal["data sheet", "measured"]]:
    """Return the matrix operations a second that a device can reach, and where the number is from."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = device_name(device)
        known = next((peak for part, peak in BFLOAT16_PEAKS.items() if part in name), None)
        if known is not None:
            return known, "data sheet"
    side = 8192 if device.type == "cuda" else 1024
    left = torch.randn(side, side, device=device).to(dtype)
    return rate(lambda: torch.mm(left, left), 1.0) * 2.0 * side**3, "measured"


def _show(figures: dict[str, Any]) -> None:
    title = f"policy: {figures['parameters']:,} parameters, {figures['dtype']} on {figures['device']}"
    acts, trains = figures["decisions_per_second"], figures["samples_per_second"]
    used, planned = figures["peak_memory_bytes"] / GIB, figures["planned_memory_bytes"] / GIB
    memory = "resident memory of the whole process" if figures["device"] == "cpu" else "peak memory"
    rows = {
        f"act, {figures['act_batch']} observations": (
            f"{acts:,.1f} decisions a second",
            f"{figures['act_peak_share']:.1%}",
        ),
        f"evaluate and backward, {figures['micro_batch']} samples": (
            f"{trains:,.1f} samples a second",
            f"{figures['train_peak_share']:.1%}",
        ),
        memory: (f"{used:.2f} GiB, planned {planned:.2f}",),
    }
    for name, floor in sorted(figures["numerical_floor"].items()):
        shown = ", ".join(f"{label} {floor[key]:.1e}" for key, label in FLOOR_LABELS.items())
        rows[f"act and evaluate differ, {name}"] = (f"|log rho| {shown}",)
    figures_table(title, ["", "share of the matrix peak"], [(name, *cells) for name, cells in rows.items()])
