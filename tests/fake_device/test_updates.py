"""From act through a whole update on fake tensors of one device: no mixed devices, and few host waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gipo_envs import EnvironmentSettings, make_spec
from gipo_vla.credit.gae import GaeSettings
from gipo_vla.credit.graph import GraphSettings
from gipo_vla.credit.group import GroupSettings
from gipo_vla.credit.information_gain import InformationGainSettings
from gipo_vla.credit.normalization import AdvantageNormalizer
from gipo_vla.imitation.cloning import Cloner
from gipo_vla.learner.demonstrated import Demonstrated
from gipo_vla.learner.learner import Learner
from gipo_vla.objectives.decoupled_ppo import DecoupledPpoSettings
from gipo_vla.objectives.gipo import GipoSettings
from gipo_vla.objectives.regularizers import RegularizerSettings
from gipo_vla.policies.base import PATCH_FEATURES, Policy, copy_trainable
from gipo_vla.policies.lora import LoraSettings
from gipo_vla.policies.mlp import MlpPolicy, MlpSettings
from gipo_vla.policies.openvla_oft import build
from gipo_vla.replay.segment import SegmentBatch, layout
from gipo_vla.settings import registry
from gipo_vla.settings.cloning import CloningLearnerSettings, CloningSettings
from tests.fake_device.conftest import counted, on_device
from tests.learner import vla

VLA: dict[str, dict[str, Any]] = {
    "full": {"training": "full", "proprio": True},
    "lora, all towers": {"lora": LoraSettings(rank=4, towers=vla.ALL_TOWERS), "proprio": True},  # type: ignore[arg-type]
    "float32 arithmetic": {"lora": LoraSettings(rank=4, dtype="float32")},
    "full, checkpointed": {"training": "full", "activation_checkpointing": True},
    "lora, checkpointed": {"lora": LoraSettings(rank=4), "activation_checkpointing": True},
}
CREDITS = (GaeSettings(), GaeSettings(importance_correction="vtrace"), GroupSettings(), GraphSettings(),
           InformationGainSettings())  # fmt: skip


def update(
    policy: Policy,
    segments: SegmentBatch,
    device: torch.device,
    objective: Any = None,
    regularizers: RegularizerSettings | None = None,
    credit: Any = None,
    reference: Policy | None = None,
    proximal: Policy | None = None,
    normalize: Any = "running",
    updates: int = 1,
    **changes: Any,
) -> None:
    """So many updates: in the first the normaliser has no statistics yet."""
    learner = Learner(
        policy,
        replace(vla.LEARNER, **changes),
        objective or GipoSettings(),
        regularizers or RegularizerSettings(),
        (credit or GaeSettings()).build(),
        AdvantageNormalizer(normalize),
        device,
        10,
        1.0,
        reference=reference,
        proximal=proximal,
    )
    for _ in range(updates):
        held: list[Any] = []
        assert counted(lambda: held.append(learner.begin(segments, 1))) == {}  # noqa: B023
        first, last = (
            counted(lambda index=index: learner.micro_step(held[0], index))  # type: ignore[misc]  # noqa: B023
            for index in range(2)
        )
        assert first == {}, "a micro-batch without an optimizer step"
        assert sum(last.values()) == 1, "the engine's own"
        end = counted(lambda: learner.end(held[0]))  # noqa: B023
        assert sum(end.values()) == 1, end
    assert learner.version == updates
    on_device(policy, device)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", VLA)
def test_a_vision_language_action_policy(case: str, gpu: torch.device) -> None:
    settings = vla.settings(**VLA[case])
    policy = build(settings, vla.spec(settings), gpu, torch.bfloat16)
    twin, reference = policy.twin(), policy.twin()
    for module in (policy, twin):
        on_device(module, gpu)
    copy_trainable(policy, twin)
    observations = {
        "images": torch.zeros(3, 1, 28, 28, 3, dtype=torch.uint8, device=gpu),
        "task": torch.zeros(3, dtype=torch.int64, device=gpu),
        "proprio": torch.zeros(3, 8, device=gpu),
    }
    held: list[Any] = []

    def act() -> None:
        decision = twin.act(observations, 1.6)
        held.append(twin.decode(decision.tokens))
        twin.encode(held[-1])
        twin.value(observations)
        policy.features(observations)

    assert counted(act) == {} and held[0].device == gpu
    update(
        policy,
        vla.segments(settings),
        gpu,
        regularizers=RegularizerSettings(kl_reference_coefficient=0.1, kl_reference="exact"),
        reference=reference,
    )
    gradients = [p for p in policy.parameters() if p.requires_grad]
    assert gradients and {p.dtype for p in gradients} == {torch.float32}


def mlp(device: torch.device, chunk: int = 2) -> tuple[MlpPolicy, SegmentBatch]:
    spec = make_spec(EnvironmentSettings("point_reach", "reach"))
    policy = MlpPolicy(MlpSettings(hidden=(12,), bins=8, chunk=chunk), spec).to(device)
    policy.tasks = 3  # told by a one-hot vector
    policy.actor[0] = nn.Linear(10 + 3, 12, device=device)
    policy.critic[0] = nn.Linear(10 + 3, 12, device=device)
    fields = layout(spec, 4, chunk, 2, 8, store_logits=True).fields
    made = {name: np.zeros((4, *field.shape), field.dtype) for name, field in fields.items()}
    made["length"] = np.array([4, 3, 1, 4], np.int32)
    made["executed"][:] = chunk
    made["temperature"][:] = 1.0
    made["terminated"] = np.array([True, False, True, False])
    return policy, SegmentBatch.from_arrays(made)


@pytest.mark.parametrize("normalize", ["running", "exact", "none"])
def test_a_small_policy_with_exact_kl_and_vtrace(gpu: torch.device, normalize: Any) -> None:
    policy, segments = mlp(gpu)
    observations = {
        "state": torch.zeros(3, 10, device=gpu),
        "task": torch.zeros(3, dtype=torch.int64, device=gpu),
    }
    assert counted(lambda: policy.act(observations, 1.0)) == {}
    update(
        policy,
        segments,
        gpu,
        regularizers=RegularizerSettings(kl_behaviour_coefficient=0.1, kl_behaviour="exact"),
        credit=GaeSettings(importance_correction="vtrace"),
        normalize=normalize,
        updates=2,
    )


@pytest.mark.parametrize("changes", [{"reuse_values": True}, {"micro_batch_rows": 8}], ids=str)
@pytest.mark.parametrize("normalize", ["running", "exact"])
def test_other_cuts_and_values_of_the_next_segment(
    gpu: torch.device, changes: dict[str, Any], normalize: Any
) -> None:
    policy, segments = mlp(gpu)
    segments.start[:] = [0, 7, 8, 4]  # the last one goes on where the first one ends
    update(policy, segments, gpu, normalize=normalize, **changes)


def test_with_features_in_place_of_images(gpu: torch.device) -> None:
    settings = vla.settings()
    policy = build(settings, vla.spec(settings), gpu, torch.bfloat16)
    segments = vla.segments(settings)
    features = settings.patch_features(vla.spec(settings), "bfloat16")
    kept = np.zeros((4, 5, *features.shape), features.dtype)
    segments = replace(segments, observations={**segments.observations, PATCH_FEATURES: kept})
    policy.network.vision = nn.Identity()  # type: ignore[assignment]  # would be given images of another shape
    update(policy, segments, gpu)


def test_while_only_the_value_trains(gpu: torch.device) -> None:
    policy, segments = mlp(gpu)
    update(policy, segments, gpu, value_only_updates=5)


OBJECTIVES = [
    *(own() for own in registry.objectives.classes().values()),
    GipoSettings(sigma="auto"),
    DecoupledPpoSettings(proximal="synchronized"),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_every_objective(gpu: torch.device, objective: Any) -> None:
    policy, segments = mlp(gpu)
    update(policy, segments, gpu, objective=objective, proximal=policy.twin(), updates=2)


@pytest.mark.parametrize("credit", CREDITS, ids=lambda own: own.name)
def test_every_credit(gpu: torch.device, credit: Any) -> None:
    policy, segments = mlp(gpu)
    update(policy, segments, gpu, credit=credit)


def test_every_credit_is_here() -> None:
    assert {own.name for own in CREDITS} == set(registry.credits.classes())


@pytest.mark.parametrize("training", ["full", "lora"])
def test_the_cloner(gpu: torch.device, training: Any) -> None:
    settings = vla.settings(training=training)
    policy = build(settings, vla.spec(settings), gpu, torch.bfloat16)
    cloner = Cloner(
        policy,
        CloningLearnerSettings(policy_learning_rate=1e-3),
        CloningSettings(steps=2, batch_size=4, micro_batch_size=2, steps_per_iteration=1),
        gpu,
    )
    batch = Demonstrated(
        {"images": np.zeros((4, 1, 28, 28, 3), np.uint8), "task": np.zeros(4, np.int64)},
        np.zeros((4, 2, 3), np.float32),
        np.ones((4, 2), bool),
    )
    waits = counted(lambda: cloner.update(batch))
    assert sum(waits.values()) == 2, waits
    on_device(policy, gpu)


def test_a_tensor_left_on_the_host_is_noticed(gpu: torch.device) -> None:
    settings = vla.settings()
    policy = build(settings, vla.spec(settings), gpu, torch.bfloat16)
    observations = {
        "images": torch.zeros(1, 1, 28, 28, 3, dtype=torch.uint8, device=gpu),
        "task": torch.zeros(1, dtype=torch.int64, device=gpu),
    }
    tokens = torch.zeros(1, 2, 3, dtype=torch.int64, device=gpu)

    def forward() -> None:
        policy(observations, tokens, torch.ones(1, device=gpu))

    forward()
    adapter = "network.language_model.layers.1.mlp.up_proj.lora_A.default.weight"
    for name in ("pixels.mean", "value_head.query", adapter):
        path, _, key = name.rpartition(".")
        owner = policy.get_submodule(path)
        tensors: dict[str, Any] = owner._parameters if key in owner._parameters else owner._buffers
        kept = tensors[key]
        moved = torch.zeros_like(kept, device="cpu")
        tensors[key] = nn.Parameter(moved) if isinstance(kept, nn.Parameter) else moved
        with pytest.raises(RuntimeError, match="device"):
            forward()
        tensors[key] = kept
    forward()


def test_a_wait_is_noticed(gpu: torch.device) -> None:
    tensor = torch.zeros(4, device=gpu)
    assert sum(counted(lambda: tensor.sum().item()).values()) == 1
    assert sum(counted(lambda: tensor[tensor > 0]).values()) == 1
    assert sum(counted(lambda: tensor.cpu()).values()) == 1
    assert sum(counted(lambda: torch.tensor([1.0], device=gpu)).values()) == 1
    assert sum(counted(lambda: tensor + 1).values()) == 0
    assert isinstance(torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE), FakeTensorMode)
