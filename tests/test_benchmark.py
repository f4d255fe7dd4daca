"""``gipo_vla.benchmark`` as a command."""

from __future__ import annotations

import json

import pytest

from gipo_envs.errors import UserError
from gipo_vla import benchmark
from gipo_vla.benchmarks import NAMES


@pytest.mark.medium
def test_the_rollout_benchmark_ends_with_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["rollout", "repeats=1", "seconds=0.5", "rollout.envs_per_worker=4"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["benchmark"] == "rollout"
    assert result["pool_ratio"] > 0
    assert result["rollout_ratio"] > 0
    assert result["task"] == "button-press-v3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rolout"], "nearest: rollout"),
        ([], "which benchmark"),
        (["rollout", "policy"], "which benchmark"),
        (["rollout", "repeats=x"], "repeats is 'x'"),
        (["rollout", "repeat=1"], "unknown setting 'repeat'; nearest: repeats"),
        (["record"], "out is missing"),
        (["policy"], "add policy=openvla_oft_tiny"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        benchmark.main(arguments)


def test_help_names_every_benchmark_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {name} " in shown for name in NAMES)
    assert "repeats=N" in shown and "Default: 5." in shown
