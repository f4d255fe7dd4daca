"""What the learner gives to objectives that ask for more than log-ratios and advantages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gipo_vla.learner.learner import Learner
from gipo_vla.objectives import CispoSettings, DecoupledPpoSettings, GipoSettings, M2poSettings, PpoSettings
from tests.learner.conftest import MakeBatch, MakeLearner

RunUpdate = Callable[..., dict[str, float]]
Weights = Callable[[Learner], dict[str, torch.Tensor]]


def closely(first: dict[str, float], second: dict[str, float]) -> bool:
    return first.keys() == second.keys() and all(
        second[name] == pytest.approx(value, rel=1e-4, abs=1e-5) for name, value in first.items()
    )


@pytest.mark.parametrize("normalize", ["running", "exact", "none"])
@pytest.mark.parametrize("objective", [M2poSettings(), GipoSettings(sigma="auto")], ids=["m2po", "auto"])
def test_statistics_are_of_the_whole_update_however_it_is_cut(
    make_learner: MakeLearner,
    make_batch: MakeBatch,
    update: RunUpdate,
    weights: Weights,
    normalize: str,
    objective: Any,
) -> None:
    whole, cut = (
        make_learner(objective=objective, batch_segments=5, micro_batch_segments=most, normalize=normalize)
        for most in (5, 1)
    )
    for number in range(3):
        batch = make_batch(5, seed=number)
        first, second = update(whole, batch), update(cut, batch)
        assert closely(first, second)
        assert {name for name in first if name.startswith("objective/")}
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(cut)[name], tensor, rtol=0, atol=2e-4, msg=name)


def test_m2po_sees_what_is_trained_on(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens of the pass before are those of the training forwards, with the same advantages."""
    seen: list[torch.Tensor] = []
    plain = M2poSettings.batch_statistics

    def spied(self: M2poSettings, *columns: torch.Tensor) -> torch.Tensor:
        seen.append(torch.stack(columns))
        return plain(self, *columns)

    monkeypatch.setattr(M2poSettings, "batch_statistics", spied)
    learner = make_learner(objective=M2poSettings(), batch_segments=5, micro_batch_segments=2)
    batch = make_batch(5)
    update(learner, batch)  # without statistics of advantages there is a pass in any case
    own = learner.begin(batch, 3)
    for index in range(learner.micro_batches):
        learner.micro_step(own, index)
    log_ratio, _, advantage, _, valid = own.diagnostics.packed().unbind(-1)
    assert len(seen) == 2
    torch.testing.assert_close(seen[1][2], valid)
    torch.testing.assert_close(seen[1][0], log_ratio)
    torch.testing.assert_close(seen[1][1], torch.where(valid > 0, advantage, 0.0))
    assert valid.sum() < len(valid), "there are tokens that were not executed"


def test_the_lag_is_that_of_each_transition(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate
) -> None:
    """Of data one update old the interpolated policy is the one that acted, and the objective PPO."""
    metrics = {}
    for name, objective in (("ppo", PpoSettings()), ("decoupled", DecoupledPpoSettings(behaviour_cap=None))):
        for version in (0, 9):
            learner = make_learner(objective=objective)
            learner.attempted = 10
            metrics[name, version] = update(learner, make_batch(4, version=version))
    assert metrics["ppo", 9]["staleness/lag_max"] == 1 and metrics["ppo", 0]["staleness/lag_max"] == 10
    assert metrics["decoupled", 9] == metrics["ppo", 9]
    assert metrics["ppo", 0]["staleness/zero_fraction"] == metrics["ppo", 9]["staleness/zero_fraction"] > 0.1
    assert metrics["decoupled", 0]["staleness/zero_fraction"] < metrics["ppo", 0]["staleness/zero_fraction"]


def test_the_proximal_policy_is_asked_only_where_it_is_wanted(
    make_learner: MakeLearner, make_batch: MakeBatch, make_policy: Any, update: RunUpdate
) -> None:
    """Where it is the learner itself, truncated importance sampling is left."""
    wanted = DecoupledPpoSettings(proximal="synchronized", beyond_cap="truncate", behaviour_cap=1.5)
    asked = make_learner(objective=wanted, proximal=make_policy(0))
    assert asked.proximal is not None
    assert make_learner(objective=DecoupledPpoSettings(), proximal=make_policy(0)).proximal is None
    tis = make_learner(objective=CispoSettings(truncation=1.5))
    batch = make_batch(4)
    assert closely(update(asked, batch), update(tis, batch))


def test_auto_uses_what_it_has_learned_in_the_next_update(
    make_learner: MakeLearner, make_batch: MakeBatch, update: RunUpdate
) -> None:
    learner = make_learner(objective=GipoSettings(sigma="auto"))
    first = update(learner, make_batch(4))
    assert first["objective/sigma"] == 1.0 and learner.adaptive is not None
    found = learner.adaptive.metrics()["objective/sigma"]
    assert found != 1.0
    fixed = make_learner(objective=GipoSettings(sigma=found))
    fixed.load_optimizer_tensors(learner.optimizer_tensors())
    fixed.load_counters(learner.counters())
    batch = make_batch(4, seed=1)
    second, same = update(learner, batch), update(fixed, batch)
    assert second.pop("objective/sigma") == found
    assert second == same
    assert np.isfinite(second["loss/policy"])
