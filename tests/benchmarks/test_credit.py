"""The benchmark of credit runs through; what it measures depends on the machine and is asserted nowhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gipo_vla import benchmark
from gipo_vla.benchmarks import credit


@pytest.mark.medium
@pytest.mark.usefixtures("process_group")
def test_every_credit_is_measured_and_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_overrides: tuple[str, ...]
) -> None:
    monkeypatch.setattr(credit, "ROLLOUTS", 16)
    monkeypatch.setattr(credit, "CHUNKS", 24)
    monkeypatch.setattr(credit, "GROUPINGS", {"2 groups of 8": 8, "1 group of 16": 16})
    assert benchmark.main(["credit", *tiny_overrides, "rollout.envs_per_worker=8", "repeats=1"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["benchmark"] == "credit" and printed["iteration_seconds"] > 0
    assert set(printed["share"]) == set(credit.CREDITS)
    for own in printed["milliseconds"].values():
        assert set(own) == {"2 groups of 8", "1 group of 16"} and min(own.values()) > 0


def test_rollouts_end_where_they_should(make_config: Callable[..., Any]) -> None:
    """64 chunks in segments of 10, a quarter of the rollouts successful in the last step."""
    import numpy as np

    from gipo_vla.assembly import environment_spec
    from gipo_vla.run.plan import plan_collection

    settings = make_config("credit=graph", "rollout.envs_per_worker=8")
    spec = environment_spec(settings)
    plans = plan_collection(settings, spec, 1)
    rng = np.random.default_rng(0)
    group = [credit._episode(plans, 0, env, env % 4 == 0, rng) for env in range(8)]
    assert [sum(s.length for s in own) for own in group] == [64] * 8
    assert [own[-1].terminated for own in group] == [True, False, False, False] * 2
    assert sum(int(s.success.sum()) for own in group for s in own) == 2
