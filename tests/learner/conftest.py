"""Learners of a small policy, and batches of segments made up for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gipo_envs import EnvironmentSettings, make_spec
from gipo_vla.credit.gae import GaeSettings
from gipo_vla.credit.normalization import AdvantageNormalizer
from gipo_vla.learner.learner import Learner
from gipo_vla.objectives.gipo import GipoSettings
from gipo_vla.objectives.regularizers import RegularizerSettings
from gipo_vla.policies.mlp import MlpPolicy, MlpSettings
from gipo_vla.replay.segment import SegmentBatch, SegmentLayout, layout
from gipo_vla.settings.schema import LearnerSettings

CPU = torch.device("cpu")
LENGTH, CHUNK, BINS = 5, 3, 8

MakeLearner = Callable[..., Learner]
MakeBatch = Callable[..., SegmentBatch]


@pytest.fixture(scope="session")
def segment_layout() -> SegmentLayout:
    """L = 5, K = 3, D = 2, with logits."""
    spec = make_spec(EnvironmentSettings("point_reach", "reach"))
    return layout(spec, LENGTH, CHUNK, 2, BINS, store_logits=True)


@pytest.fixture(scope="session")
def make_policy() -> Callable[..., MlpPolicy]:
    def make(seed: int = 0) -> MlpPolicy:
        torch.manual_seed(seed)
        spec = make_spec(EnvironmentSettings("point_reach", "reach"))
        policy = MlpPolicy(MlpSettings(hidden=(12,), bins=BINS, chunk=CHUNK), spec)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        return policy

    return make


@pytest.fixture(scope="session")
def make_batch(segment_layout: SegmentLayout, make_policy: Callable[..., MlpPolicy]) -> MakeBatch:
    """``make_batch(count, seed)``: segments of several lengths and endings, acted by another policy; what
    stands at padding is garbage, so that whoever looks at it is found out."""

    def make(count: int = 4, seed: int = 0, version: int = 0) -> SegmentBatch:
        rng = np.random.default_rng(seed)
        batch = {}
        for name, field in segment_layout.fields.items():
            if field.dtype.kind == "f":
                batch[name] = rng.normal(size=(count, *field.shape)).astype(field.dtype)
            else:
                batch[name] = rng.integers(0, 2, (count, *field.shape)).astype(field.dtype)
        batch["tokens"] = rng.integers(0, BINS, batch["tokens"].shape).astype(np.uint8)
        batch["length"] = (1 + np.arange(count) % LENGTH)[::-1].astype(np.int32)
        batch["executed"] = rng.integers(1, CHUNK + 1, batch["executed"].shape).astype(np.int32)
        batch["terminated"] = (np.arange(count) % 2 == 0).astype(np.bool_)
        batch["truncated"] = ~batch["terminated"]
        batch["temperature"][:] = 1.6
        batch["version"][:] = version
        batch["iteration"][:] = 1
        behaviour = make_policy(7)
        shape = batch["tokens"].shape[:2]
        states = torch.from_numpy(batch["observation/state"][:, :-1].reshape(-1, 10))
        with torch.no_grad():
            out = behaviour.evaluate(
                {"state": states},
                torch.from_numpy(batch["tokens"].reshape(-1, CHUNK, 2).astype(np.int64)),
                torch.full((len(states),), 1.6),
            )
        assert out.logits is not None
        batch["log_probs"] = out.log_probs.numpy().reshape(*shape, CHUNK, 2).copy()
        batch["logits"] = out.logits.numpy().reshape(*shape, CHUNK, 2, BINS).astype(np.float16)
        padding = np.arange(LENGTH) >= batch["length"][:, None]
        for name in ("rewards", "log_probs", "values", "advantages"):
            batch[name][padding] = np.nan
        batch["executed"][padding] = 99
        return SegmentBatch.from_arrays(batch)

    return make


@pytest.fixture
def make_learner(process_group: None, make_policy: Callable[..., MlpPolicy]) -> MakeLearner:
    """``make_learner(policy_seed=0, objective=..., credit=..., normalize=..., stored_values=False,
    reference=None, proximal=None, **fields of LearnerSettings)``."""

    def make(
        policy_seed: int = 0,
        objective: Any = None,
        regularizers: RegularizerSettings | None = None,
        credit: Any = None,
        normalize: Any = "running",
        stored_values: bool = False,
        reference: MlpPolicy | None = None,
        proximal: MlpPolicy | None = None,
        reward_scale: float = 1.0,
        **settings: Any,
    ) -> Learner:
        plain = LearnerSettings(
            updates=1,
            batch_segments=4,
            micro_batch_segments=4,
            policy_learning_rate=1e-2,
            value_learning_rate=2e-2,
            warmup_iterations=0,
            schedule="constant",
        )
        return Learner(
            make_policy(policy_seed),
            replace(plain, **settings),
            objective or GipoSettings(),
            regularizers or RegularizerSettings(),
            (credit or GaeSettings()).build(),
            AdvantageNormalizer(normalize),
            CPU,
            10,
            reward_scale,
            stored_values,
            reference,
            proximal,
        )

    return make


@pytest.fixture
def update() -> Callable[..., dict[str, float]]:
    """``update(learner, batch)``: one whole update; its metrics."""

    def run(learner: Learner, batch: SegmentBatch, iteration: int = 3) -> dict[str, float]:
        own = learner.begin(batch, iteration)
        for index in range(learner.micro_batches):
            learner.micro_step(own, index)
        return learner.end(own)

    return run


@pytest.fixture
def weights() -> Callable[[Learner], dict[str, torch.Tensor]]:
    """Copies of a learner's parameters by name."""

    def copy(learner: Learner) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in learner.policy.named_parameters()}  # type: ignore[attr-defined]

    return copy
