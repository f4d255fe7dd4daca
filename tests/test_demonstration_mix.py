"""``replay.demonstration_share`` in whole runs: where demonstrations come from, and that a run goes on with
them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gipo_envs.errors import UserError
from gipo_vla import sft
from gipo_vla.run.resume import Start
from gipo_vla.settings import runs
from gipo_vla.telemetry.metrics import read_json_lines
from gipo_vla.train import resolve, train
from tests.conftest import TINY_SFT, TINY_VLA, MakeConfig

MIX = ("replay.demonstration_share=0.2", "demonstrations=experts", "demonstrations.count=3")
LOSS = "demonstration/loss"


def test_a_run_that_stops_sees_the_same_demonstrations(
    tiny_overrides: tuple[str, ...], tmp_path: Path
) -> None:
    common = [*tiny_overrides, *MIX, "env.task=reach", "iterations=4", "learner.value_only_updates=2"]
    common.append("learner.policy_learning_rate=1e-2")
    straight, stopped = (tmp_path / name for name in ("straight", "stopped"))
    train(resolve([*common, f"run_dir={straight}"]))
    train(resolve([*common, f"run_dir={stopped}", "stop_after=2"]))
    train(resolve([f"resume={stopped}"]))
    whole = (straight / "metrics.jsonl").read_bytes()
    assert whole == (stopped / "metrics.jsonl").read_bytes()
    losses = [row[LOSS] for row in read_json_lines(straight / "metrics.jsonl")]
    # The policy rests for an iteration and is cloned from then on.
    assert losses[-1] < losses[1] - 0.01


@pytest.mark.medium
def test_recorded_demonstrations_beside_a_policy_that_sees(
    tiny_overrides: tuple[str, ...], tmp_path: Path
) -> None:
    vla = [text for text in TINY_VLA if not text.startswith("replay.")]
    cloning = [text for text in TINY_SFT if not text.startswith("policy.")]
    cloning += [*vla, "sft.steps=2", "sft.steps_per_iteration=1", f"run_dir={tmp_path / 'start'}"]
    start = sft.clone(Start(runs.load_sft(cloning)))
    common = [text for text in tiny_overrides if not text.startswith("policy.")] + list(TINY_VLA)
    mix = ["replay.demonstration_share=0.1", "demonstrations=recorded", f"demonstrations.path={start}"]
    run = train(
        resolve([*common, *mix, "env.task=reach", f"init_from={start}", f"run_dir={tmp_path / 'run'}"])
    )
    assert all(row[LOSS] > 0 for row in read_json_lines(run / "metrics.jsonl"))
    assert not (run / "demonstrations").exists(), "they are read where they are"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("replay.demonstration_share=0.1",), "add demonstrations=recorded"),
        (("demonstrations=experts",), "replay.demonstration_share is 0"),
        (("replay.demonstration_share=1.0", "demonstrations=experts"), "replay.demonstration_share"),
    ],
)
def test_half_of_the_settings(make_config: MakeConfig, overrides: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make_config(*overrides)
