"""What is done, what is half done, what is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gipo_envs.errors import UserError
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.reporting import archive
from gipo_vla.settings import runs
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.sweeping import folders
from gipo_vla.sweeping.folders import SweepFolder, estimate
from gipo_vla.sweeping.jobs import Job
from gipo_vla.telemetry.console import in_words
from gipo_vla.telemetry.metrics import read_json_lines
from tests.sweeping.conftest import MakeSweep


def pretend(job: Job, folder: Path, finished: bool = True, rows: int = 5) -> RunFolder:
    """A run folder as training leaves it."""
    folder.mkdir(parents=True)
    run = RunFolder(folder)
    run.config.write_text(runs.to_yaml(job.settings).replace("run_dir: null", f"run_dir: {folder}"))
    run.metrics.write_text(
        "".join(json.dumps({"iteration": n, "env_steps": 160 * n}) + "\n" for n in range(1, rows + 1))
    )
    run.evaluations.touch()
    if finished:
        run.write_json(run.evaluation, {"mode": "greedy", "success_once": 0.5})
        digest = runs.digest(job.settings)
        run.write_json(
            run.finished,
            {"iterations": 2, "env_steps": 320, "session_seconds": 64.0, "config_digest": digest},
        )
    return run


def test_finished_and_started_jobs_are_told_apart(make_sweep: MakeSweep, tmp_path: Path) -> None:
    jobs = make_sweep("seed=0,1,2").chosen
    pretend(jobs[0], tmp_path / "sweep" / jobs[0].name)
    pretend(jobs[1], tmp_path / "sweep" / jobs[1].name, finished=False)
    folder = SweepFolder(tmp_path / "sweep")
    assert [folder.finished(job) is not None for job in jobs] == [True, False, False]
    assert [folder.run(job).holds_run() for job in jobs] == [True, True, False]
    assert [job.digest for job in make_sweep("seed=0,1,2").left] == [jobs[1].digest, jobs[2].digest]


def test_a_job_is_found_by_its_digest(make_sweep: MakeSweep, tmp_path: Path) -> None:
    (job,) = make_sweep("seed=0").chosen
    pretend(job, tmp_path / "sweep" / f"other-words-{job.digest}")
    assert SweepFolder(tmp_path / "sweep").finished(job) == tmp_path / "sweep" / f"other-words-{job.digest}"


@pytest.mark.parametrize("place", ["docs/results/data/sweep", "elsewhere"])
def test_small_data_counts_as_finished(make_sweep: MakeSweep, tmp_path: Path, place: str) -> None:
    arguments = ("seed=0,1", f"keep={tmp_path / 'elsewhere'}")
    jobs = make_sweep(*arguments).chosen
    pretend(jobs[1], tmp_path / place / jobs[1].name)
    assert [job.digest for job in make_sweep(*arguments).left] == [jobs[0].digest]


@pytest.mark.parametrize("finished", [True, False])
def test_defaults_that_changed_since_are_noticed(
    make_sweep: MakeSweep, tmp_path: Path, finished: bool
) -> None:
    (job,) = make_sweep("seed=0").chosen
    run = pretend(job, tmp_path / "sweep" / job.name, finished)
    run.config.write_text(run.config.read_text().replace("gamma: 0.995", "gamma: 0.9"))
    if finished:
        run.write_json(run.finished, {"config_digest": "0123456789abcdef"})
    with pytest.raises(UserError, match=r"credit.gamma: 0.9 -> 0.995"):
        make_sweep("seed=0")


def test_what_is_kept_is_one_archive_without_paths(make_sweep: MakeSweep, tmp_path: Path) -> None:
    sweep = make_sweep("seed=0,1", f"keep={tmp_path / 'kept'}")
    (job, unfinished) = sweep.chosen
    run = pretend(job, tmp_path / "sweep" / job.name)
    (run.path / "log.txt").write_text("words")
    pretend(unfinished, tmp_path / "sweep" / unfinished.name, finished=False)
    folder = SweepFolder(tmp_path / "sweep")
    folders.keep(folder, sweep.chosen, tmp_path / "kept", None)
    (path,) = (tmp_path / "kept").iterdir()
    (record,) = archive.read(path)
    assert record["name"] == job.name and record["overrides"] == job.arguments
    assert str(tmp_path) not in json.dumps(record)
    assert runs.typed(record["config"], TrainingSettings) == job.settings
    assert archive.rows_of(record["metrics"]) == read_json_lines(run.metrics)
    before = path.stat().st_mtime_ns
    folders.keep(folder, sweep.chosen, tmp_path / "kept", None)
    assert path.stat().st_mtime_ns == before


def test_a_job_in_an_archive_is_done_and_its_results_are_read_there(
    make_sweep: MakeSweep, tmp_path: Path
) -> None:
    arguments = ("seed=0,1", f"keep={tmp_path / 'kept'}")
    sweep = make_sweep(*arguments)
    (job, other) = sweep.chosen
    run = pretend(job, tmp_path / "sweep" / job.name)
    folders.keep(SweepFolder(tmp_path / "sweep"), [job], tmp_path / "kept", None)
    shutil.rmtree(run.path)
    again = make_sweep(*arguments)
    assert again.left == [other]
    assert again.folder.result(job, "evaluation") == {"mode": "greedy", "success_once": 0.5}
    (path,) = (tmp_path / "kept").iterdir()
    record = archive.read(path)[0]
    record["config"]["credit"]["gamma"] = 0.9
    record["finished"]["config_digest"] = "0123456789abcdef"
    path.unlink()
    archive.add(tmp_path / "kept", [record])
    with pytest.raises(UserError, match=r"credit.gamma: 0.9 -> 0.995"):
        make_sweep(*arguments)


def test_kept_metrics_may_be_thinned(make_sweep: MakeSweep, tmp_path: Path) -> None:
    (job,) = make_sweep("seed=0").chosen
    pretend(job, tmp_path / "sweep" / job.name, rows=50)
    folders.keep(SweepFolder(tmp_path / "sweep"), [job], tmp_path / "kept", 10)
    (record,) = archive.read_folder(tmp_path / "kept")
    numbers = record["metrics"]["iteration"]
    assert (len(numbers), numbers[0], numbers[-1]) == (10, 1, 50)


def test_the_list_says_what_was_varied(make_sweep: MakeSweep, tmp_path: Path) -> None:
    """Also to who asks a part of it again, and in what is kept."""
    path, kept = tmp_path / "sweep", tmp_path / "kept"
    every = make_sweep("replay.capacity=640,1280", "objective=gipo,ppo", "seed=0")
    for place in (None, kept):
        every.folder.write_list(every.listed, place)
    whole = json.loads((path / "sweep.json").read_text())
    assert (kept / "sweep.json").read_bytes() == (path / "sweep.json").read_bytes()
    assert whole["factors"] == {"replay.capacity": [640, 1280], "objective": ["gipo", "ppo"]}
    assert whole["arms"] == []
    assert whole["jobs"][1] == {
        "name": every.chosen[1].name,
        "overrides": every.chosen[1].arguments,
        "factors": {"replay.capacity": 640, "objective": "ppo"},
    }
    for job in every.chosen:
        pretend(job, path / job.name)
    part = make_sweep("replay.capacity=640", "objective=ppo,sapo", "seed=0")
    part.folder.write_list(part.listed)
    again = json.loads((path / "sweep.json").read_text())
    assert len(again["jobs"]) == 5
    assert again["factors"] == {"objective": ["ppo", "sapo", "gipo"], "replay.capacity": [640, 1280]}


def test_a_list_of_an_earlier_version_is_read(make_sweep: MakeSweep, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    old = {"jobs": [{"name": "other-0123456789", "overrides": ["seed=9"]}]}
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(old))
    (tmp_path / "sweep" / "other-0123456789").mkdir()
    sweep = make_sweep("seed=0,1")
    sweep.folder.write_list(sweep.listed)
    read = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert read["jobs"][-1] == old["jobs"][0] and read["factors"] == {"seed": [0, 1]}


def test_the_score_is_chosen_before_the_first_job(make_sweep: MakeSweep, tmp_path: Path) -> None:
    """A sweep keeps what it was started with, wherever its list lies; one of an earlier version has none."""
    first = make_sweep("seed=0", "score=sampled.mean_return", f"keep={tmp_path / 'kept'}")
    first.folder.write_list(first.listed, tmp_path / "kept")
    assert json.loads((tmp_path / "kept" / "sweep.json").read_text())["score"] == "sampled.mean_return"
    again = make_sweep("seed=0,1", f"keep={tmp_path / 'kept'}")
    assert again.folder.score == again.summary()["score"] == "sampled.mean_return"
    with pytest.raises(UserError, match=r"score=success_once, but .* started with score=sampled.mean_return"):
        make_sweep("seed=0", "score=success_once", f"keep={tmp_path / 'kept'}")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text('{"jobs": []}')
    assert make_sweep("seed=0").folder.score == "success_once"
    with pytest.raises(UserError, match="started with score=success_once"):
        make_sweep("seed=0", "score=mean_return")
    (tmp_path / "sweep" / "sweep.json").write_text('{"score": "luck", "jobs": []}')
    with pytest.raises(UserError, match=r"sweep\.json has score 'luck': expected one of success_once"):
        make_sweep("seed=0")


def test_a_job_is_reserved_once(make_sweep: MakeSweep, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    lock = folders.try_to_lock(run)
    assert lock is not None
    assert folders.try_to_lock(run) is None
    lock.close()
    with run.lock():  # a run that is still saving, though its sweep is gone
        assert folders.try_to_lock(run) is None
    again = folders.try_to_lock(run)
    assert again is not None
    again.close()


# ------------------------------------------------------------------------------------------------- estimates


def test_costs_come_from_a_hint_until_they_are_measured(make_sweep: MakeSweep, tmp_path: Path) -> None:
    jobs = make_sweep("seed=0,1,2,3,4").chosen
    empty = SweepFolder(tmp_path / "sweep")
    planned = estimate(empty, jobs, jobs, None)
    assert planned.seconds == pytest.approx(5 * jobs[0].plan.duration.total)
    assert planned.source.startswith("estimated from the settings")
    hinted = estimate(empty, jobs, jobs, 10.0)
    assert (hinted.seconds, hinted.env_steps) == (50.0, 5 * 480)
    assert hinted.wall_seconds(2) == 30.0  # three rounds of two
    assert hinted.wall_seconds(100) == 10.0
    pretend(jobs[0], tmp_path / "sweep" / jobs[0].name)  # 64 s for 320 env steps of the 480
    measured = estimate(SweepFolder(tmp_path / "sweep"), jobs, jobs[1:], 10.0)
    assert measured.seconds == pytest.approx(4 * 96)
    for seconds in (20.0, 30.0):  # two sessions
        empty.record(jobs[0], "ended", seconds=seconds)
    assert estimate(SweepFolder(tmp_path / "sweep"), jobs, jobs[1:], None).seconds == pytest.approx(4 * 75)


def test_durations_are_for_people() -> None:
    told = [in_words(seconds) for seconds in (None, 45, 720, 16200, 72000, 5e6)]
    assert told == ["unknown", "45 s", "12 min", "4.5 h", "20 h", "58 days"]
