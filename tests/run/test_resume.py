"""Which run a command line continues, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gipo_envs.errors import UserError
from gipo_vla.checkpoint.run_folder import RunFolder, create
from gipo_vla.run.resume import launch_record
from gipo_vla.settings import runs
from gipo_vla.train import resolve

MakeRun = Callable[..., Path]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without a run_dir go below the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)


@pytest.fixture
def make_run(tiny_overrides: tuple[str, ...]) -> MakeRun:
    """``make_run(path, "key=value", ..., finished=3)``: what a run of these settings leaves on disk."""

    def make(path: Path | str, *overrides: str, finished: int = 0) -> Path:
        settings = runs.load("train", [*tiny_overrides, f"run_dir={path}", *overrides])
        folder = create(settings)
        folder.write_text(folder.config, runs.to_yaml(settings))
        if finished:
            folder.write_json(folder.finished, {"iterations": finished})
        return folder.path

    return make


# --------------------------------------------------------------------------------------- resume=RUN_DIR


def test_a_run_is_resumed_with_its_own_settings(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "run", "objective.sigma=0.7", "stop_after=1")
    start = resolve([f"resume={tmp_path / 'run'}"])
    assert start.settings.objective.sigma == 0.7
    assert start.settings.stop_after is None, "that was for the session before"
    assert start.folder is not None and start.folder.path == tmp_path / "run"
    assert start.changes == () and not start.finished


def test_changed_settings_are_named(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    start = resolve([f"resume={tmp_path / 'run'}", "learner.updates=5", "iterations=9", "rollout.workers=2"])
    assert start.changes == ("iterations: 2 -> 9", "learner.updates: 2 -> 5", "rollout.workers: 1 -> 2")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("env.task=push", "env.task: reach -> push"),
        ("policy.hidden=[32]", "policy.hidden: [16] -> [32]"),
        ("seed=1", "seed: 0 -> 1"),
        ("replay.segment_length=5", "replay.segment_length: 10 -> 5"),
        ("credit=group", "credit.name: gae -> group"),
    ],
)
def test_what_would_make_it_another_run_is_refused(
    make_run: MakeRun, tmp_path: Path, override: str, named: str
) -> None:
    make_run(tmp_path / "run", "rollout.group_size=2")
    with pytest.raises(UserError) as refused:
        resolve([f"resume={tmp_path / 'run'}", override])
    assert named in str(refused.value) and "would make this another run" in str(refused.value)


def test_a_scorer_may_not_change_but_its_window_may(make_run: MakeRun, tmp_path: Path) -> None:
    groups = ("credit=information_gain", "rollout.group_size=2")
    make_run(tmp_path / "run", *groups)
    with pytest.raises(UserError, match=r"credit\.scorer\.input: landmarks -> state"):
        resolve([f"resume={tmp_path / 'run'}", "credit.scorer.input=state"])
    start = resolve([f"resume={tmp_path / 'run'}", "credit.refresh_every=9"])
    assert start.changes == ("credit.refresh_every: 1 -> 9",)


def test_where_things_lie_may_change(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    start = resolve([f"resume={tmp_path / 'run'}", f"env.assets={tmp_path}"])
    assert start.changes == (f"env.assets: None -> {tmp_path}",)


def test_a_finished_run_is_refused_unless_more_is_asked_for(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "run", finished=2)
    with pytest.raises(UserError, match=r"is finished \(2 iterations\): give iterations above that"):
        resolve([f"resume={tmp_path / 'run'}"])
    assert resolve([f"resume={tmp_path / 'run'}", "iterations=3"]).settings.iterations == 3


def test_what_is_no_run_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run \(no config\.yaml\)"):
        resolve([f"resume={tmp_path / 'none'}"])
    make_run(tmp_path / "run")
    checkpoint = tmp_path / "run/checkpoints/000001-0000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=rf"is one checkpoint: give its run folder, {tmp_path / 'run'}"):
        resolve([f"resume={checkpoint}"])
    with pytest.raises(UserError, match=r"leave out run_dir=.*/other"):
        resolve([f"resume={tmp_path / 'run'}", f"run_dir={tmp_path / 'other'}"])


# ----------------------------------------------------------------------------------- auto, and restarts


def test_auto_begins_a_run_or_resumes_it(
    make_run: MakeRun, tmp_path: Path, tiny_overrides: tuple[str, ...]
) -> None:
    command = [*tiny_overrides, f"run_dir={tmp_path / 'run'}", "resume=auto"]
    assert resolve(command).folder is None
    make_run(tmp_path / "run")
    start = resolve(command)
    assert start.folder is not None and start.by_itself and not start.finished
    with pytest.raises(UserError, match=r"holds a run of other settings \(learner\.updates: 2 -> 3\)"):
        resolve([*command, "learner.updates=3"])
    (tmp_path / "run/finished.json").write_text('{"iterations": 2}')
    assert resolve(command).finished, "nothing to do, and no mistake of the user's"


def test_auto_without_a_folder_takes_the_newest_unfinished_run_of_the_same_settings(
    make_run: MakeRun, tiny_overrides: tuple[str, ...]
) -> None:
    command = [*tiny_overrides, "resume=auto"]
    assert resolve(command).folder is None
    make_run("runs/point_reach-20260101-000000")
    make_run("runs/point_reach-20260102-000000")
    make_run("runs/point_reach-20260103-000000", "seed=1")
    make_run("runs/point_reach-20260104-000000", finished=2)
    start = resolve(command)
    assert start.folder is not None and start.folder.path == Path("runs/point_reach-20260102-000000")
    assert start.settings.run_dir == "runs/point_reach-20260102-000000"


def test_a_restart_by_torchrun_finds_its_own_run(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tiny_overrides: tuple[str, ...]
) -> None:
    for name, record in (("20260101-000000", launch_record()), ("20260102-000000", {"host": "another"})):
        (make_run(f"runs/point_reach-{name}") / "launch.json").write_text(json.dumps(record))
    assert resolve(tiny_overrides).folder is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    start = resolve(tiny_overrides)
    assert start.folder is not None and start.folder.path == Path("runs/point_reach-20260101-000000")
    assert start.by_itself
    named = [*tiny_overrides, "run_dir=runs/point_reach-20260102-000000"]
    assert resolve(named).folder is None, "another launch's, also at the second attempt"
    named[-1] = "run_dir=runs/point_reach-20260101-000000"
    assert resolve(named).folder is not None


# ------------------------------------------------------------------------------------------------ folders


def test_a_taken_folder_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"already holds a run: choose another run_dir, or .* resume="):
        make_run(tmp_path / "run")


def test_seeds_started_in_the_same_second_get_folders_of_their_own(
    tiny_overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    made = [create(runs.load("train", tiny_overrides)).path.name for _ in range(3)]
    assert made == [f"point_reach-20260101-000000{end}" for end in ("", "-2", "-3")]


def test_two_processes_cannot_have_one_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path).lock():
        with pytest.raises(UserError, match="is being written by another process"):
            RunFolder(tmp_path).lock()
        with pytest.raises(UserError, match="is being written by another process"):
            RunFolder(tmp_path).lock(patience=0.6)
    RunFolder(tmp_path).lock().close()


def test_a_full_disk_is_seen_before_anything_starts(
    tiny_overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gipo_vla.checkpoint.run_folder.SPARE_BYTES", 2**60)
    with pytest.raises(UserError, match=r"MB free, this run needs at least"):
        create(runs.load("train", [*tiny_overrides, f"run_dir={tmp_path / 'run'}"]))
