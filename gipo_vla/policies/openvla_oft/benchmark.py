"""What the policy costs on a device: decisions acted, samples trained, memory, and the share of the peak.

No checkpoint is needed: the arithmetic does not depend on the weights' values. The share of the matrix peak
counts matrix multiplications only, against the card's dense peak from its data sheet where the card is known
and against a large matrix product measured here where it is not.

It also reports the numerical floor of every log-ratio (``policies.numerical_floor``).
"""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from gipo_envs.protocol import ArraySpec, EnvironmentSpec
from gipo_vla.policies.base import Observations
from gipo_vla.policies.memory_plan import DtypeName, Workload, plan_memory, tokens_per_sample
from gipo_vla.policies.numerical_floor import floor_metrics, log_ratio_floor
from gipo_vla.policies.openvla_oft.construction import build
from gipo_vla.policies.openvla_oft.flops import forward_flops, train_flops
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings

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
WARM_UP = 2


@dataclass(frozen=True)
class PolicyBenchmark:
    """One benchmark's figures; plain numbers for a table and for JSON."""

    device: str
    dtype: str
    parameters: int
    trainable_parameters: int
    tokens_per_sample: int
    act_batch: int
    decisions_per_second: float
    act_peak_share: float
    micro_batch: int
    samples_per_second: float
    """Forward, backward; without an optimiser step."""
    train_peak_share: float
    matrix_peak: float
    """Operations a second."""
    matrix_peak_source: Literal["data sheet", "measured"]
    peak_memory_bytes: int
    """Allocated on the GPU while training; the process's largest resident set on a CPU."""
    planned_memory_bytes: int
    """What the memory plan says of weights, gradients and activations (no optimiser here)."""
    numerical_floor: dict[str, dict[str, float]]
    """|log rho| between act and evaluate with the same weights, by dtype: see ``numerical_floor``."""


def benchmark_policy(
    settings: OpenVlaOftSettings,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    act_batch: int,
    micro_batch: int,
    seconds: float = 5.0,
    temperature: float = 1.6,
    action_size: int = 7,
    proprio_size: int | None = None,
) -> PolicyBenchmark:
    """Build the policy, act and train on random observations, and measure.

    Args:
        seconds: for each of acting and training, after warming up.
        proprio_size: of the observations; needed if the policy reads proprioception.
    """
    device = torch.device(device)
    cameras = settings.images or 1
    spec = synthetic_spec(settings.architecture.image_size, cameras, proprio_size, action_size)
    policy = build(settings, spec, device, dtype)
    dtype_name: DtypeName = "bfloat16" if dtype == torch.bfloat16 else "float32"
    workload = Workload(
        micro_batch,
        act_batch,
        images=cameras,
        proprio_size=proprio_size if policy.settings.proprio else None,
        action_dims=action_size,
        prompt_tokens=policy.prompt_ids.shape[1],
        dtype=dtype_name,
        cuda=False,
    )
    peak, source = matrix_peak(device, dtype)
    many = synthetic_observations(spec, act_batch, device)
    act_rate = _rate(lambda: policy.act(many, temperature), seconds, device) * act_batch
    floor = floor_metrics(log_ratio_floor(policy.twin(), policy, many, micro_batch, temperature))

    few = synthetic_observations(spec, micro_batch, device)
    tokens = policy.act(few, temperature).tokens
    temperatures = torch.full((micro_batch,), temperature, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def train() -> None:
        evaluation = policy(few, tokens, temperatures)
        (evaluation.values.mean() - evaluation.log_probs.mean() - evaluation.entropies.mean()).backward()
        policy.zero_grad(set_to_none=True)

    train_rate = _rate(train, seconds, device) * micro_batch
    plan = plan_memory(settings, dataclasses.replace(workload, act_batch=0))
    return PolicyBenchmark(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        dtype=dtype_name,
        parameters=sum(p.numel() for p in policy.parameters()),
        trainable_parameters=sum(p.numel() for p in policy.parameters() if p.requires_grad),
        tokens_per_sample=tokens_per_sample(settings, workload),
        act_batch=act_batch,
        decisions_per_second=act_rate,
        act_peak_share=act_rate * forward_flops(settings, workload) / peak,
        micro_batch=micro_batch,
        samples_per_second=train_rate,
        train_peak_share=train_rate * train_flops(settings, workload) / peak,
        matrix_peak=peak,
        matrix_peak_source=source,
        peak_memory_bytes=_peak_memory(device),
        planned_memory_bytes=plan.total - plan.twin - plan.optimizer,
        numerical_floor={dtype_name: floor},
    )


def numerical_floor(
    settings: OpenVlaOftSettings,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    act_batch: int,
    micro_batch: int,
    temperature: float = 1.6,
    action_size: int = 7,
    proprio_size: int | None = None,
) -> dict[str, float]:
    """The floor of |log rho| alone, in any dtype; arguments as for ``benchmark_policy``."""
    device = torch.device(device)
    image_size = settings.architecture.image_size
    spec = synthetic_spec(image_size, settings.images or 1, proprio_size, action_size)
    policy = build(settings, spec, device, dtype)
    observations = synthetic_observations(spec, act_batch, device)
    return floor_metrics(log_ratio_floor(policy.twin(), policy, observations, micro_batch, temperature))


def synthetic_spec(
    image_size: int, cameras: int, proprio_size: int | None, action_size: int
) -> EnvironmentSpec:
    """An environment that exists only on paper, with one task of the usual length of instruction."""
    observation = {
        "images": ArraySpec((cameras, image_size, image_size, 3), "uint8"),
        "task": ArraySpec((), "int64"),
    }
    if proprio_size is not None:
        observation["proprio"] = ArraySpec((proprio_size,), "float32")
    return EnvironmentSpec(
        tasks=("benchmark",),
        instructions=INSTRUCTIONS,
        observation=observation,
        action_size=action_size,
        step_limit=220,
        action_repeat=1,
        end_on_success=True,
        reward_scale=1.0,
        frames_per_second=20.0,
    )


def synthetic_observations(spec: EnvironmentSpec, batch: int, device: torch.device) -> Observations:
    """Random pixels and proprioception."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, *spec.observation["images"].shape)
    observations = {
        "images": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        "task": torch.zeros(batch, dtype=torch.int64),
    }
    if "proprio" in spec.observation:
        size = spec.observation["proprio"].shape[0]
        observations["proprio"] = torch.randn(batch, size, generator=generator)
    return {name: value.to(device) for name, value in observations.items()}


def matrix_peak(device: torch.device, dtype: torch.dtype) -> tuple[float, Literal["data sheet", "measured"]]:
    """Matrix operations a second that a device can reach, and where the number is from."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        known = next((peak for part, peak in BFLOAT16_PEAKS.items() if part in name), None)
        if known is not None:
            return known, "data sheet"
    side = 8192 if device.type == "cuda" else 1024
    left = torch.randn(side, side, device=device).to(dtype)
    rate = _rate(lambda: torch.mm(left, left), 1.0, device)
    return rate * 2.0 * side**3, "measured"


def _rate(call: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Calls a second."""
    for _ in range(WARM_UP):
        call()
    _synchronize(device)
    start = time.perf_counter()
    calls = 0
    while (elapsed := time.perf_counter() - start) < seconds or calls == 0:
        call()
        _synchronize(device)
        calls += 1
    return calls / elapsed


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
