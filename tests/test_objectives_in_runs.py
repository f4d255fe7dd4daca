"""Every objective under the whole pipeline: two iterations, and stopped and continued to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gipo_envs.errors import UserError
from gipo_vla.checkpoint import run_state
from gipo_vla.settings import registry
from tests.conftest import MakeConfig, MakePipeline, iterations, save_checkpoint, stopped_and_resumed

OBJECTIVES = {
    **{name: (f"objective={name}",) for name in registry.objectives.classes()},
    "gipo, auto": ("objective=gipo", "objective.sigma=auto"),
    "decoupled_ppo, synchronized": (
        "objective=decoupled_ppo",
        "objective.proximal=synchronized",
        "rollout.sync_every=2",
    ),
    "m2po, exact": ("objective=m2po", "credit.normalize=exact", "objective.budget=1e-4"),
}
METRICS = {
    "gipo, auto": {"objective/sigma"},
    "m2po": {"objective/second_moment", "objective/boxed"},
    "m2po, exact": {"objective/second_moment", "objective/boxed", "objective/tau"},
}


@pytest.mark.parametrize("case", OBJECTIVES)
def test_two_iterations_of(make_pipeline: MakePipeline, case: str) -> None:
    pipeline = make_pipeline(*OBJECTIVES[case], "learner.updates=3")
    before = [p.detach().clone() for p in pipeline.policy.parameters()]  # type: ignore[attr-defined]
    rows = iterations(pipeline, 2)
    after = list(pipeline.policy.parameters())  # type: ignore[attr-defined]
    assert not any(torch.equal(old, new) for old, new in zip(before, after))
    assert all(torch.isfinite(parameter).all() for parameter in after)
    assert rows[-1]["learner/skipped_total"] == 0 and rows[-1]["updates"] == 6
    assert 0 < rows[-1]["staleness/weight_mean"] < 10
    told = {name for name in rows[-1] if name.startswith("objective/")}
    assert told == METRICS.get(case, set())
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize("case", ["gipo, auto", "decoupled_ppo", "decoupled_ppo, synchronized", "m2po"])
def test_stopping_and_going_on_changes_no_metric(
    make_pipeline: MakePipeline, tmp_path: Path, case: str
) -> None:
    """Stopped at every update of three iterations, by a checkpoint each time."""
    overrides = (*OBJECTIVES[case], "iterations=3", "learner.updates=2", "learner.policy_learning_rate=0.03")
    expected = iterations(make_pipeline(*overrides), 3)
    if case == "gipo, auto":
        assert len({row["objective/sigma"] for row in expected}) > 1, "there is something to remember"
    rows, stops = stopped_and_resumed(make_pipeline, overrides, tmp_path / "checkpoints", lambda stop: True)
    assert stops > 5
    assert rows == expected


def test_a_run_with_a_fixed_sigma_goes_on_with_auto(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    pipeline = make_pipeline()
    iterations(pipeline, 1)
    folder = save_checkpoint(tmp_path / "checkpoints", pipeline)
    pipeline.close()
    pipeline = make_pipeline("objective.sigma=auto")
    run_state.load(folder, pipeline)
    assert iterations(pipeline, 1)[0]["objective/sigma"] > 0


def test_a_proximal_policy_that_is_the_learner_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"rollout\.sync_every is 1: .*learner\.updates \(2\)"):
        make_config("objective=decoupled_ppo", "objective.proximal=synchronized")
