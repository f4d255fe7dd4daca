"""Settings from YAML and the command line, and back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from gipo_envs.errors import UserError
from gipo_vla import cli, train
from gipo_vla.assembly import environment_spec
from gipo_vla.distributed import group
from gipo_vla.settings import composition, runs
from gipo_vla.settings.schema import TrainingSettings

MakeConfig = Callable[..., TrainingSettings]


def experiments() -> list[str]:
    return composition.groups()["experiment"]


@pytest.mark.parametrize("experiment", experiments())
def test_every_experiment_composes(experiment: str) -> None:
    values = composition.compose_yaml("train", [f"experiment={experiment}"])
    assert values.experiment == experiment


@pytest.mark.parametrize(
    "override",
    [f"{group}={option}" for group in ("objective", "credit") for option in composition.groups()[group]],
)
def test_every_option_is_valid(make_config: MakeConfig, override: str) -> None:
    group, _, option = override.partition("=")
    extra = ("rollout.envs_per_worker=8",) if override != "credit=gae" else ()
    assert getattr(make_config(override, *extra), group).name == option


def test_the_default_is_the_button_on_metaworld() -> None:
    settings = runs.load("train", [])
    assert (settings.experiment, settings.env.task) == ("metaworld_mlp", "button-press-v3")


def test_overrides_win_over_the_experiment(make_config: MakeConfig) -> None:
    settings = make_config("objective.sigma=0.25", "seed=7", "replay.max_lag=50", "env.step_limit=20")
    assert settings.objective.sigma == 0.25  # type: ignore[union-attr]
    assert (settings.seed, settings.replay.max_lag, settings.env.step_limit) == (7, 50, 20)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("env.task=[reach,push]", "policy.hidden=[32,8]"),
        ("credit=group", "rollout.group_size=2", "objective=sapo"),
        ("replay.max_lag=9", "stop_after=1", "resume=some folder/with spaces"),
    ],
    ids=str,
)
def test_yaml_there_and_back(make_config: MakeConfig, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    settings = make_config(*overrides)
    path = tmp_path / "config.yaml"
    path.write_text(runs.to_yaml(settings))
    assert runs.read_run(path) == settings
    assert runs.digest(runs.read_run(path)) == runs.digest(settings)
    assert runs.typed(runs.to_dict(settings), TrainingSettings) == settings


def test_the_digest_is_of_the_run_not_of_the_session(make_config: MakeConfig) -> None:
    settings = make_config()
    same = replace(settings, run_dir="elsewhere", resume="auto", stop_after=1)
    assert runs.digest(settings) == runs.digest(same) == runs.digest(make_config())
    assert len(runs.digest(settings)) == 16
    others = [make_config(text) for text in ("seed=1", "objective.sigma=0.9", "eval.mode=sampled")]
    assert len({runs.digest(other) for other in (settings, *others)}) == 4


def test_paths_need_no_quotes(make_config: MakeConfig) -> None:
    for path in ("/a b/c=d", "relative/run-1", "C:\\runs", "~/runs,1"):
        assert make_config(f"run_dir={path}").run_dir == path
    assert make_config("run_dir=null").run_dir is None
    assert make_config("run_dir='x y'").run_dir == "x y"


def problem(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        runs.load("train", ["experiment=point_reach", *overrides])
    return str(caught.value)


@pytest.mark.parametrize(
    "override, named",
    [
        ("objective.sigm=1", ("objective.sigm", "objective.sigma")),
        ("replay.capcity=1", ("replay.capcity", "replay.capacity")),
        ("capacity=1", ("'capacity'", "replay.capacity")),
        ("iteration=3", ("'iteration'", "iterations")),
        ("objective=gip", ("objective=gip", "gipo")),
        ("env=metawrld", ("env=metawrld", "metaworld")),
        ("experiment=metaworld_button", ("metaworld_button", "metaworld_button_press")),
        ("objective.kernel=gausian", ("objective.kernel", "gausian", "gaussian")),
        ("seed", ("seed", "key=value")),
    ],
)
def test_unknown_names_come_with_the_nearest(override: str, named: tuple[str, ...]) -> None:
    message = problem(override)
    assert all(part in message for part in named), message
    assert "\n" not in message


@pytest.mark.parametrize(
    "overrides, named",
    [
        (("+objective.width=1",), ("objective.width",)),
        (("+replay.shards=2",), ("replay.shards",)),
        (("+env.camera.zoom=2",), ("env.camera.zoom",)),
        (("+colour=red",), ("colour",)),
        (("objective=ppo", "objective.sigma=1"), ("objective.sigma",)),
        (("objective=nothing",), ("nothing",)),
        (("policy.bins=many",), ("policy.bins", "many")),
        (("policy.bins=1",), ("policy.bins", "1")),
        (("iterations=0",), ("iterations", "0")),
        (("iterations=2.5",), ("iterations", "2.5")),
        (("seed=-1",), ("seed", "-1")),
        (("learner.policy_learning_rate=0",), ("learner.policy_learning_rate", "0")),
        (("learner.policy_learning_rate=nan",), ("learner.policy_learning_rate", "nan")),
        (("learner.policy_learning_rate=inf",), ("learner.policy_learning_rate", "inf")),
        (("objective.sigma=0",), ("objective.sigma", "0", "above 0")),
        (("objective.sigma=-0.5",), ("objective.sigma", "-0.5", "above 0")),
        (("objective.sigma=nan",), ("objective.sigma", "nan")),
        (("objective.sigma=wide",), ("objective.sigma is 'wide'", "number", "or 'auto'")),
        (("objective.sigma=null",), ("objective.sigma",)),
        (("rollout.collect=some",), ("rollout.collect", "some")),
        (("replay.capacity=100",), ("replay.capacity", "100", "320")),
        (("learner.micro_batch_segments=0",), ("learner.micro_batch_segments", "0")),
        (("rollout.group_size=3",), ("rollout.group_size", "3")),
        (("credit=group", "rollout.group_size=1"), ("rollout.group_size",)),
        (("env.camera.height=0",), ("height", "0")),
    ],
    ids=str,
)
def test_wrong_values_are_named(overrides: tuple[str, ...], named: tuple[str, ...]) -> None:
    try:
        settings = runs.load("train", ["experiment=point_reach", "rollout.workers=2", *overrides])
    except UserError as error:
        message = str(error)
    else:  # what only the environment can judge
        with pytest.raises(UserError) as caught:
            environment_spec(replace(settings, env=replace(settings.env, observations=("state", "images"))))
        message = str(caught.value)
    assert all(part in message for part in named), message
    assert "\n" not in message


def test_a_damaged_config_file_is_named(tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"config\.yaml"):
        runs.read_run(tmp_path / "config.yaml")
    for text in ("a: [1, 2", "just words", ""):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError):
            runs.read_run(tmp_path / "config.yaml")
    values = OmegaConf.create(runs.to_yaml(make_config()))
    values.replay.shards = 3
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(values))
    with pytest.raises(UserError, match=r"replay\.shards"):
        runs.read_run(tmp_path / "config.yaml")


def test_overriding_a_finished_run(make_config: MakeConfig) -> None:
    base = make_config()
    changed = runs.override(base, ["objective.sigma=0.3", "iterations=9"])
    assert (changed.objective.sigma, changed.iterations) == (0.3, 9)  # type: ignore[union-attr]
    assert runs.override(base, []) == base
    assert runs.override(base, ["objective=ppo"]).objective.name == "ppo"
    for text, named in (
        ("objective.sigm=1", "objective.sigma"),
        ("objective=gip", "gipo"),
        ("x", "key=value"),
    ):
        with pytest.raises(UserError, match=named):
            runs.override(base, [text])


def test_a_published_evaluation_of_a_run_that_was_trained_otherwise(make_config: MakeConfig) -> None:
    trained_with = ("env.step_limit=100", "env.evaluation_states=sampled", "eval.mode=sampled")
    base = make_config(*trained_with)
    evaluated = runs.override(base, ["eval=libero_published", "eval.video=false"])
    assert (evaluated.env.step_limit, evaluated.env.evaluation_states) == (None, "published")
    assert (evaluated.eval.episodes_per_task, evaluated.eval.mode) == (50, "sampled")
    assert replace(evaluated, env=base.env, eval=base.eval) == base
    # What a command line says beside it wins, as over an experiment.
    assert make_config(*trained_with, "eval=libero_published").env.step_limit == 100
    with pytest.raises(UserError, match="libero_published"):
        runs.override(base, ["eval=libero_publish"])


# ------------------------------------------------------------------------------------------- command line


@pytest.fixture
def run_train(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """``run_train("key=value", ...)``: exit status, stdout and stderr of the command, in this process, with
    a pool that cannot be made."""

    def no_pool(*_: object, **__: object) -> None:
        raise AssertionError("a worker would have been started")

    monkeypatch.setattr("gipo_vla.pipeline.WorkerPool", no_pool)
    # The first start in a process lets a linker complain where pytest, but no command, would show it.
    group.start(torch.device("cpu"))
    group.stop()
    capfd.readouterr()

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        monkeypatch.setattr(cli, "_leave_at_once", lambda: None)  # pytest is still needed
        with pytest.raises(SystemExit) as caught:
            cli.run(train.main)
        out, err = capfd.readouterr()
        return int(caught.value.code or 0), out, err

    return run


def assert_refused(result: tuple[int, str, str], *named: str) -> None:
    status, out, err = result
    assert status == 2 and out == "", (status, out, err)
    assert err.startswith("error: ") and err.count("\n") == 1, f"not one line: {err}"
    assert all(part in err for part in named), err


def test_help_shows_the_groups(run_train: Callable[..., Any]) -> None:
    status, out, err = run_train("--help")
    assert status == 0 and err == ""
    for name, options in composition.groups().items():
        of_another_command = name in {"demonstrations", "sweep"}
        assert (f"  {name}: {', '.join(options)}" in out) is not of_another_command


def test_cfg_prints_the_composed_settings(run_train: Callable[..., Any]) -> None:
    status, out, err = run_train("experiment=point_reach", "seed=3", "--cfg")
    assert status == 0 and err == ""
    values = OmegaConf.create(out)
    assert (values.experiment, values.seed, values.env.family) == ("point_reach", 3, "point_reach")


def test_an_unknown_option_is_refused(run_train: Callable[..., Any]) -> None:
    assert_refused(run_train("--sigma=1"), "--sigma", "--help")


@pytest.mark.parametrize(
    "overrides, named",
    [
        (("objective.sigm=1",), ("objective.sigm", "objective.sigma")),
        (("env.task=reech",), ("reech", "reach")),
        (("env=metaworld", "env.task=buton-press-v3"), ("buton-press-v3", "button-press-v3")),
        (("env=metaworld", "env.task=[reach-v3,pusch-v3]"), ("pusch-v3", "push-v3")),
        (("objective.sigma=0",), ("objective.sigma", "above 0")),
        (("replay.capacity=50",), ("replay.capacity", "50")),
        (("replay.segment_length=41", "replay.capacity=4000"), ("replay.segment_length", "41", "40")),
        (("env.observations=[images]",), ("env.observations", "state")),
        (("learner.device=cuda",), ("learner.device", "cpu")),
    ],
    ids=str,
)
def test_bad_input_is_one_line(
    run_train: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    overrides: tuple[str, ...],
    named: tuple[str, ...],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run_dir = tmp_path / "run"
    assert_refused(run_train("experiment=point_reach", f"run_dir={run_dir}", *overrides), *named)
    assert not run_dir.exists(), "nothing is left behind"


def test_pixels_without_opengl(run_train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = ("env=metaworld", "env.observations=[state,images]")
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    assert_refused(run_train(*pixels), "MUJOCO_GL", "nonsense", "osmesa")
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr("gipo_envs.gl._loads", lambda library: False)
    assert_refused(run_train(*pixels), "OpenGL", "apt-get install")


def test_a_folder_that_holds_a_run(
    run_train: Callable[..., Any], tiny_overrides: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\n')
    assert_refused(run_train(*tiny_overrides, f"run_dir={tmp_path}"), str(tmp_path), "resume=")
    assert (tmp_path / "metrics.jsonl").read_text() == '{"iteration": 1}\n'


def test_a_full_disk(
    run_train: Callable[..., Any],
    tiny_overrides: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = type("Usage", (), {"free": 0, "total": 1, "used": 1})
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    assert_refused(run_train(*tiny_overrides, f"run_dir={tmp_path / 'run'}"), "0 MB free", "run_dir")


@pytest.mark.parametrize("place", ["a file", "no permission"])
def test_a_folder_that_cannot_be_written(
    run_train: Callable[..., Any],
    tiny_overrides: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    (tmp_path / "occupied").write_text("a file")
    if place == "no permission":  # root may write anywhere

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "touch", refuse)
    target = tmp_path / ("occupied" if place == "a file" else "run")
    assert_refused(run_train(*tiny_overrides, f"run_dir={target}"), str(target), "run_dir")


def test_resuming_nothing(run_train: Callable[..., Any], tmp_path: Path) -> None:
    assert_refused(run_train(f"resume={tmp_path / 'nowhere'}"), "nowhere", "resume")


@pytest.mark.medium
def test_a_whole_process_says_one_line(tiny_overrides: tuple[str, ...], tmp_path: Path) -> None:
    """No chatter of imported libraries around it; on a disk that is really full where that can be had."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.yaml").write_text("")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True, check=False
    )
    try:
        targets = [("taken", "already holds a run")]
        if mounted.returncode == 0:
            (small / "filler").write_bytes(b"x" * 60 * 1024)
            targets.append(("small", "MB free"))
        for target, named in targets:
            done = subprocess.run(
                [sys.executable, "-m", "gipo_vla.train", *tiny_overrides, f"run_dir={tmp_path / target}"],
                capture_output=True,
                text=True,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
                check=False,
            )
            assert_refused((done.returncode, done.stdout, done.stderr), named)
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", str(small)], check=True)


def test_a_setting_of_another_option_is_named_with_the_choice() -> None:
    told = r"with objective=ppo; available: objective\.clip_high, objective\.clip_low"
    with pytest.raises(UserError, match=rf"unknown setting 'objective\.sigma' {told}"):
        runs.load("train", ["objective=ppo", "objective.sigma=1"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("learner.value_scale=running", "credit.values=stored"), "credit.values=recomputed"),
        (("learner.policy_every=2", "credit=group", "rollout.group_size=2"), "trains no value"),
    ],
)
def test_a_learner_that_its_credit_cannot_serve_is_refused_before_anything_starts(
    overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        runs.load("train", ["experiment=point_reach", *overrides])
