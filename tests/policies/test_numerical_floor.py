"""The same weights on other batches: what |log rho| is where nothing is stale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gipo_vla.assembly import build_policy, environment_spec
from gipo_vla.pipeline import Pipeline
from gipo_vla.policies.base import Observations, Policy
from gipo_vla.policies.numerical_floor import floor_metrics, log_ratio_floor
from gipo_vla.run.plan import plan_collection
from gipo_vla.settings import runs
from tests.conftest import TINY, TINY_VLA, MakeConfig

CPU = torch.device("cpu")
VLA = (*TINY_VLA, "rollout.temperature=1.6")


def policy_and_observations(overrides: tuple[str, ...], batch: int) -> tuple[Policy, Observations]:
    own = [text for text in TINY if not (overrides and text.startswith("policy."))]
    settings = runs.load("train", [*own, *overrides])
    spec = environment_spec(settings)
    rng = np.random.default_rng(0)
    observations: Observations = {}
    for name, array in spec.observation.items():
        shape = (batch, *array.shape)
        values = rng.integers(0, 256, shape) if array.dtype == "uint8" else rng.random(shape)
        observations[name] = torch.from_numpy((values if name != "task" else 0 * values).astype(array.dtype))
    policy = build_policy(settings, spec, CPU)
    assert isinstance(policy, torch.nn.Module)
    with torch.no_grad():  # a policy from nothing is nearly uniform, and constants agree with anything
        for name, parameter in policy.named_parameters():
            if "action_head" in name:
                parameter.mul_(30)
    return policy, observations


@pytest.mark.parametrize("overrides", [(), VLA], ids=["mlp", "vla"])
@pytest.mark.parametrize(("batch", "micro_batch"), [(16, 3), (3, 16), (8, 8)])
def test_float32_agrees_within_1e_4(overrides: tuple[str, ...], batch: int, micro_batch: int) -> None:
    policy, observations = policy_and_observations(overrides, batch)
    floor = log_ratio_floor(policy, policy, observations, micro_batch, 1.6)
    assert floor.shape == (batch * policy.chunk * policy.action_dims,)
    assert float(floor.max()) <= 1e-4
    whole = log_ratio_floor(policy, policy, observations, batch, 1.6)
    assert whole.max() == 0, "the same batch, the same numbers"
    decision = policy.act(observations, 1.6, torch.Generator().manual_seed(0))
    assert decision.log_probs.std() > 0.1
    metrics = floor_metrics(floor)
    assert 0 <= metrics["mean"] <= metrics["p99"] <= metrics["p999"] <= metrics["max"]


def test_bfloat16_of_the_tiny_network_is_reported() -> None:
    policy, observations = policy_and_observations((*VLA, "learner.precision=bfloat16"), 16)
    metrics = floor_metrics(log_ratio_floor(policy, policy, observations, 3, 1.6))
    assert metrics["mean"] <= 1e-2


def test_every_row_of_a_run_has_it_and_measuring_changes_none(
    make_config: MakeConfig, process_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for measured in (True, False):
        settings = make_config()
        spec = environment_spec(settings)
        policy = build_policy(settings, spec, CPU)
        if not measured:
            monkeypatch.setattr(Pipeline, "_measure_floor", lambda self: {"mean": 0.0})
        pipeline = Pipeline(settings, policy, plan_collection(settings, spec, 1), CPU)
        try:
            done = [pipeline.run_iteration() for _ in range(2)]
        finally:
            pipeline.close()
        rows.append([row for row, _ in filter(None, done)])
    name = "staleness/numerical_floor_"
    assert [row[f"{name}max"] for row in rows[0]] == [rows[0][0][f"{name}max"]] * 2
    assert 0 <= rows[0][0][f"{name}max"] <= 1e-4
    plain = [[{k: v for k, v in row.items() if not k.startswith(name)} for row in own] for own in rows]
    assert plain[0] == plain[1]
