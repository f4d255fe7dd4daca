"""``gipo_vla.sft`` as a user runs it: what it leaves, that the seed decides it, what may start from it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gipo_envs import CameraSettings, EnvironmentSettings
from gipo_envs.errors import UserError
from gipo_vla import evaluate, sft, train
from gipo_vla.assembly import build_policy, environment_spec
from gipo_vla.checkpoint.policy_files import find_checkpoint
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.imitation.cloning import Cloner
from gipo_vla.learner.demonstrated import Demonstrated
from gipo_vla.policies.mlp import MlpPolicy
from gipo_vla.run.cloning import has_settled
from gipo_vla.run.resume import Start
from gipo_vla.settings import runs
from gipo_vla.settings.cloning import SftSettings
from gipo_vla.settings.runs import load_sft, read_run
from gipo_vla.settings.schema import TrainingSettings
from tests.conftest import TINY, TINY_SFT

MakeSft = Callable[..., SftSettings]
MakeConfig = Callable[..., TrainingSettings]
CPU = torch.device("cpu")
PICTURES = EnvironmentSettings(
    "point_reach", "reach", ("images", "proprio"), CameraSettings(("top",), 84, 84)
)
SAME_POLICY = ("policy.hidden=[32]", "policy.bins=32")


def clone(settings: SftSettings) -> Path:
    """A new run of these settings; returns its folder."""
    return sft.clone(Start(settings))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def policy_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoint(folder) / "policy.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny finished run."""
    folder = tmp_path_factory.mktemp("sft") / "run"
    return clone(load_sft([*TINY_SFT, f"run_dir={folder}"]))


# ------------------------------------------------------------------------------------------------- the run


def test_a_run_leaves_what_a_training_run_leaves(finished: Path) -> None:
    table = rows(finished)
    assert [(row["iteration"], row["updates"]) for row in table] == [(1, 4), (2, 8)]
    assert all(row["env_steps"] == table[0]["env_steps"] > 0 for row in table)
    assert table[1]["loss/train"] < table[0]["loss/train"] and "loss/validation" in table[0]
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert (
        evaluation["mode"] == "greedy"
        and evaluation["episodes"] == 4
        and "success_once" in evaluation["sampled"]
    )
    done = json.loads((finished / "finished.json").read_text())
    assert done["updates"] == 8 and done["reason"] == "all 8 updates are made"
    assert (finished / "loss_curve.png").stat().st_size > 0
    settings = read_run(finished / "config.yaml")
    assert isinstance(settings, SftSettings) and settings.demonstrations.count == 5
    facts = json.loads((finished / "demonstrations" / "demonstrations.json").read_text())
    assert len(facts["episodes"]) == 5 and facts["attempts"] >= 5
    checkpoint = find_checkpoint(finished)
    assert checkpoint.name == "000002-0000008" == done["checkpoint"]
    assert (finished / "checkpoints" / "latest").read_text().strip() == checkpoint.name


def test_the_seed_decides_every_byte(finished: Path, make_sft: MakeSft, tmp_path: Path) -> None:
    again = clone(make_sft(f"run_dir={tmp_path / 'again'}", "rollout.workers=2", "rollout.envs_per_worker=2"))
    other = clone(make_sft(f"run_dir={tmp_path / 'other'}", "seed=1"))
    for name in ("metrics.jsonl", "evaluation.json", "demonstrations/actions.npy"):
        assert (again / name).read_bytes() == (finished / name).read_bytes(), name
        assert (other / name).read_bytes() != (finished / name).read_bytes(), name
    assert all(torch.equal(tensor, policy_of(again)[name]) for name, tensor in policy_of(finished).items())


def test_inputs_are_normalised_by_the_demonstrations(finished: Path) -> None:
    settings = read_run(finished / "config.yaml")
    spec = environment_spec(settings)
    initial = build_policy(settings, spec, CPU)
    assert isinstance(initial, MlpPolicy) and initial.normalizer.count == 0
    stored = policy_of(finished)
    states = np.load(finished / "demonstrations" / "observation-state.npy")
    assert 0 < stored["normalizer.count"] < len(states), "those of the training episodes"
    assert torch.equal(stored["critic.0.weight"], initial.critic[0].weight), "nothing taught the value"


def test_it_stops_when_the_held_out_loss_has_settled(make_sft: MakeSft) -> None:
    folder = clone(
        make_sft(
            "sft.steps=400", "sft.settled_after=3", "learner.schedule=constant", "sft.settled_tolerance=0.2"
        )
    )
    losses = [row["loss/validation"] for row in rows(folder)]
    assert 3 < len(losses) < 100
    assert has_settled(losses, 3, 0.2) and not has_settled(losses[:-1], 3, 0.2)
    assert "has not fallen for 3 iterations" in (folder / "finished.json").read_text()


@pytest.mark.parametrize(
    "losses, after, settled",
    [
        ([3.0, 2.0, 1.0], 2, False),
        ([3.0, 1.0, 1.0], 2, False),
        ([3.0, 1.0, 1.0, 0.995], 2, True),
        ([3.0, 1.0, 1.2, 1.5], 2, True),
        ([3.0, 1.0, 1.2, 0.9], 2, False),
        ([1.0, 1.0], 2, False),
        ([1.0] * 9, None, False),
    ],
)
def test_settled(losses: list[float], after: int | None, settled: bool) -> None:
    assert has_settled(losses, after, 0.01) == settled


@pytest.mark.parametrize("updates", [4, 6], ids=["between iterations", "within an iteration"])
def test_a_run_that_was_stopped_and_resumed_is_the_one_that_never_was(
    finished: Path, make_sft: MakeSft, monkeypatch: pytest.MonkeyPatch, updates: int
) -> None:
    """A signal is answered after the update under way, as in training; to the bit."""
    folder = Path(str(make_sft().run_dir))
    made, update = 0, Cloner.update

    def update_and_signal(self: Cloner, batch: Demonstrated) -> dict[str, float]:
        nonlocal made
        made += 1
        if made == updates:
            signal.raise_signal(signal.SIGTERM)
        return update(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Cloner, "update", update_and_signal)
        clone(make_sft())
    assert made == updates and not (folder / "finished.json").exists()
    assert find_checkpoint(folder).name.endswith(f"-{updates:07d}")
    recorded = (folder / "demonstrations" / "actions.npy").stat().st_mtime_ns
    sft.clone(sft.resolve([f"resume={folder}"]))
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name
    assert all(torch.equal(tensor, policy_of(folder)[name]) for name, tensor in policy_of(finished).items())
    assert (folder / "demonstrations" / "actions.npy").stat().st_mtime_ns == recorded, "recorded once"


def test_what_a_resumed_run_may_change(finished: Path) -> None:
    with pytest.raises(UserError, match=r"is finished: give a larger sft\.steps"):
        sft.resolve([f"resume={finished}"])
    more = sft.resolve([f"resume={finished}", "sft.steps=12", "rollout.workers=2"])
    assert more.settings.sft.steps == 12
    assert more.changes == ("rollout.workers: 1 -> 2", "sft.steps: 8 -> 12")
    for change, told in (
        ("sft.batch_size=8", r"sft\.batch_size: 16 -> 8"),
        ("learner.warmup_steps=3", r"learner\.warmup_steps: 20 -> 3"),
        ("demonstrations.count=6", r"demonstrations\.count: 5 -> 6"),
        ("seed=1", "seed: 0 -> 1"),
    ):
        with pytest.raises(UserError, match=f"{told} would make this another run"):
            sft.resolve([f"resume={finished}", "sft.steps=12", change])


def test_commands_do_not_resume_each_others_runs(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a run of python -m gipo_vla\.sft: resume it with that command"):
        train.resolve([f"resume={finished}"])
    (tmp_path / "config.yaml").write_text(runs.to_yaml(runs.load("train", TINY)))
    with pytest.raises(UserError, match=r"is a run of python -m gipo_vla\.train: resume it with"):
        sft.resolve([f"resume={tmp_path}"])


def test_auto_begins_a_run_resumes_it_and_leaves_it_alone_when_it_is_finished(
    finished: Path, make_sft: MakeSft, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(make_sft().run_dir)
    command = [*TINY_SFT, f"run_dir={folder}", "resume=auto"]
    for told in ("stopped after 4/8 updates; resume it with resume=", "resuming from", "nothing to do"):
        more = ["stop_after=1"] if told.startswith("stopped") else []
        assert sft.main([*command, *more]) == 0
        assert told in capsys.readouterr().err
    assert rows(Path(folder)) == rows(finished)
    with pytest.raises(UserError, match=r"holds a run of other settings \(seed: 0 -> 1\)"):
        sft.main([*command, "seed=1"])


def test_two_processes_cannot_write_one_run(finished: Path, make_sft: MakeSft, tmp_path: Path) -> None:
    """Neither two new runs, nor a resume of one that still runs."""
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}
    refused = pytest.raises(UserError, match="is being written by another process")
    with RunFolder(finished).lock(), refused:
        sft.clone(sft.resolve([f"resume={finished}", "sft.steps=12"]))
    assert before == {path: path.stat().st_mtime_ns for path in before}
    (tmp_path / "sft").mkdir()
    with RunFolder(tmp_path / "sft").lock(), refused:
        clone(make_sft())


def test_what_was_recorded_serves_another_run(finished: Path, make_sft: MakeSft) -> None:
    folder = clone(
        make_sft("demonstrations=recorded", f"demonstrations.path={finished}", "demonstrations.count=3")
    )
    assert not (folder / "demonstrations").exists()
    assert rows(folder)[-1]["updates"] == 8


# -------------------------------------------------------------------------------------- commands on a run


def test_evaluate_takes_a_cloning_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([f"checkpoint={finished}"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((finished / "evaluation.json").read_text())
    evaluate.main([f"checkpoint={finished}", "eval.episodes_per_task=2", "rollout.workers=2"])
    assert json.loads(capsys.readouterr().out)["episodes"] == 2


def test_training_starts_from_what_was_cloned(finished: Path, make_config: MakeConfig) -> None:
    settings = make_config(*SAME_POLICY, f"init_from={finished}", "iterations=1")
    policy = build_policy(settings, environment_spec(settings), CPU)
    assert isinstance(policy, MlpPolicy)
    stored = policy_of(finished)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in policy.state_dict().items())
    folder = train.train(Start(settings))
    trained = policy_of(folder)
    assert not torch.equal(trained["action_head.weight"], stored["action_head.weight"])
    for name in ("normalizer.count", "normalizer.mean"):
        assert torch.equal(trained[name], stored[name]), "inputs keep the statistics they were cloned with"


def test_a_run_that_started_from_another_needs_it_only_once(
    finished: Path, make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = tmp_path / "origin"
    (origin / "checkpoints").parent.mkdir()
    (finished / "checkpoints").rename(origin / "checkpoints")
    try:
        settings = make_config(*SAME_POLICY, f"init_from={origin}", "iterations=1")
        folder = train.train(Start(settings))
    finally:
        (origin / "checkpoints").rename(finished / "checkpoints")
    origin.rmdir()
    assert evaluate.main([f"checkpoint={folder}"]) == 0
    build_policy(settings, environment_spec(settings), CPU, stored=folder / "checkpoints")
    with pytest.raises(UserError, match="is no folder"):
        build_policy(settings, environment_spec(settings), CPU)


def problem(settings: TrainingSettings) -> str:
    with pytest.raises(UserError) as caught:
        build_policy(settings, environment_spec(settings), CPU)
    return str(caught.value)


def test_another_policy_is_named(finished: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    origin = f"init_from={finished}"
    assert "policy.hidden is (32,) there, (16,) here" in problem(make_config(origin, "policy.bins=32"))
    assert "policy.bins is 32 there, 16 here" in problem(make_config(origin, "policy.hidden=[32]"))
    vla = replace(make_config(origin), policy=runs.load("train", ["policy=openvla_oft_tiny"]).policy)
    assert "holds a policy mlp, this run's is openvla_oft" in problem(replace(vla, env=PICTURES))
    two_tasks = make_config(origin, *SAME_POLICY, "env.task=[reach,push]")
    assert "does not fit this run's environment" in problem(two_tasks)
    assert "init_from=" in problem(make_config(f"init_from={tmp_path / 'nowhere'}"))
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoints/" in problem(make_config(f"init_from={tmp_path / 'empty'}"))


# ------------------------------------------------------------------------------------------------ settings


def test_experiments_belong_to_their_command() -> None:
    with pytest.raises(UserError, match=r"belongs to python -m gipo_vla\.sft"):
        runs.load("train", ["experiment=metaworld_mlp_sft"])
    with pytest.raises(UserError, match=r"belongs to python -m gipo_vla\.train"):
        load_sft(["experiment=point_reach"])
    for name in ("metaworld_mlp_sft", "metaworld_oft_tiny_sft"):
        assert load_sft([f"experiment={name}"]).experiment == name


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("sft.step=3",), "unknown setting 'sft.step'; nearest: sft.steps"),
        (("sft.micro_batch_size=0",), "sft.micro_batch_size is 0"),
        (("sft.settled_after=2", "sft.validation_share=0"), "there is no held-out loss to settle"),
        (("demonstrations.action_noise=-1",), "demonstrations.action_noise is -1"),
        (("demonstrations=lerobot",), "demonstrations.path is missing"),
        (("demonstrations=film",), "there is no such demonstrations"),
    ],
)
def test_wrong_settings_are_named(make_sft: MakeSft, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_sft(*overrides)
    assert message in str(caught.value)


def test_a_policy_that_does_not_fit_is_refused_before_recording(make_sft: MakeSft, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"to env\.observations"):
        clone(make_sft("env.observations=[images]"))
    assert not (tmp_path / "sft").exists()


def test_settings_survive_yaml(make_sft: MakeSft, tmp_path: Path) -> None:
    settings = make_sft("demonstrations.state_range={index: 4, low: null, high: 0.5}", "seed=3")
    (tmp_path / "config.yaml").write_text(runs.to_yaml(settings))
    assert read_run(tmp_path / "config.yaml") == settings
    assert runs.digest(settings) != runs.digest(replace(settings, seed=4))


# ------------------------------------------------------------------------------------------------- success


@pytest.mark.medium
def test_a_cloned_point_reaches_its_goal(make_sft: MakeSft) -> None:
    folder = clone(
        make_sft("demonstrations.count=40", "sft.steps=600", "sft.batch_size=128", "sft.micro_batch_size=128",
                 "policy.hidden=[64,64]", "eval.episodes_per_task=50", "sft.steps_per_iteration=100")
    )  # fmt: skip
    assert json.loads((folder / "evaluation.json").read_text())["success_once"] > 0.6


@pytest.mark.medium
def test_a_small_vla_is_cloned_evaluated_and_started_from(
    make_sft: MakeSft, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its statistics are computed, stored in every checkpoint, and taken from there."""
    vla = ("policy=openvla_oft_tiny", "env.observations=[images,proprio]")
    pictures = ("env.camera.height=84", "env.camera.width=84")
    own = [text for text in TINY_SFT if not text.startswith("policy.")]
    folder = clone(load_sft([*own, *vla, *pictures, "sft.steps=2", f"run_dir={tmp_path / 'vla'}"]))
    checkpoint = find_checkpoint(folder)
    statistics = json.loads((checkpoint / "dataset_statistics.json").read_text())
    action = statistics["point_reach"]["action"]
    actions = np.load(folder / "demonstrations" / "actions.npy").astype(float)
    assert action["q01"] == pytest.approx(np.quantile(actions, 0.01, axis=0)) and action["mask"] == [
        True,
        True,
    ]
    assert evaluate.main([f"checkpoint={folder}"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "evaluation.json").read_text())

    settings = runs.load(
        "train",
        ["experiment=point_reach", *vla, *pictures, f"init_from={folder}", "replay.segment_length=5",
         "iterations=1", "rollout.workers=1", "rollout.envs_per_worker=4", "rollout.env_steps=160",
         "replay.capacity=100", "learner.updates=1", "learner.batch_segments=2",
         "learner.micro_batch_segments=2", "eval.episodes_per_task=2", f"run_dir={tmp_path / 'rl'}"],
    )  # fmt: skip
    policy = build_policy(settings, environment_spec(settings), CPU)
    assert policy.statistics_entries == statistics  # type: ignore[attr-defined]
    trained = train.train(Start(settings))
    assert json.loads((find_checkpoint(trained) / "dataset_statistics.json").read_text()) == statistics
    with pytest.raises(UserError, match=r"policy\.chunk is 8 there, 4 here"):
        changed = replace(settings, policy=replace(settings.policy, chunk=4))
        build_policy(changed, environment_spec(changed), CPU)
