"""The sweep's own settings, and ready-made sweeps."""

from __future__ import annotations

import re

import pytest

from gipo_envs.errors import UserError
from gipo_vla.settings.composition import groups
from gipo_vla.sweeping import jobs
from gipo_vla.sweeping.settings import SweepSettings, default_sweep_dir, load, split


def test_arguments_are_split() -> None:
    own, rest = split(["jobs=3", "seed=0,1", "sweep_dir=/a b/c", "objective.sigma=1", "+replay.max_lag=5"])
    assert own == {"jobs": "3", "sweep_dir": "/a b/c"}
    assert rest == ["seed=0,1", "objective.sigma=1", "+replay.max_lag=5"]
    settings = load(own, rest)
    assert (settings.jobs, settings.sweep_dir, settings.overrides) == (3, "/a b/c", tuple(rest))


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["job=2"], "nearest: jobs"),
        (["run_dir=x"], "sweep_dir"),
        (["resume=auto"], "sweep_dir"),
        (["jobs=0"], "jobs"),
        (["sample=-1"], "sample"),
        (["launch=slurm"], "launch"),
        (["score=luck"], "success_at_end"),
        (["nproc_per_node=2"], "launch=torchrun"),
        (["part=5/4"], "part=1/4"),
        (["part=half"], "part=1/4"),
        (["sweep=paper"], "paper_metaworld"),
        (["sweep=paper_metaworld_small", "objective=gipo"], "arms"),
    ],
)
def test_mistakes_are_named(arguments: list[str], named: str) -> None:
    with pytest.raises(UserError) as caught:
        load(*split(arguments))
    assert named in str(caught.value)


def test_the_command_line_replaces_what_a_ready_made_sweep_has() -> None:
    settings = load({"sweep": "paper_metaworld_small", "jobs": "1"}, ["seed=5"])
    assert "seed=5" in settings.overrides
    assert sum(text.startswith("seed=") for text in settings.overrides) == 1
    assert settings.sweep_dir == "sweeps/paper_metaworld_small"


def test_a_ready_made_sweep_changes_the_one_that_it_builds_on() -> None:
    base, derived = (load({"sweep": name}, []) for name in ("old_data_claim", "old_data_untrained"))
    changed = {"iterations=1", "learner.value_only_updates=12", "checkpoint.every_iterations=null"}
    assert set(derived.overrides) - set(base.overrides) == changed
    assert len(derived.overrides) == len(base.overrides), "each took the place of one"
    assert "iterations=7" in load({"sweep": "old_data_untrained"}, ["iterations=7"]).overrides


@pytest.mark.parametrize("count", [1, 5, 12, 72])
def test_parts_share_out_every_job_once(count: int) -> None:
    parts = [SweepSettings(part=f"{number}/5").slice_of(count) for number in range(1, 6)]
    assert [index for part in parts for index in range(count)[part]] == list(range(count))


def test_values_do_not_change_the_default_folder() -> None:
    folder = default_sweep_dir("point_reach", ["replay.capacity", "seed"])
    assert folder.as_posix() == "sweeps/point_reach-capacity-seed"


# ----------------------------------------------------------------------------------------- the paper's grids


@pytest.mark.parametrize("name", groups()["sweep"])
def test_every_ready_made_sweep_is_valid(name: str) -> None:
    """One seed and, where there are many, the first tasks: the whole grid is the same over and over."""
    settings = load({"sweep": name}, ["seed=22"])
    listed = jobs.plan(settings) if name != "paper_metaworld" else jobs.plan(_one_task(settings))
    assert listed.jobs


def _one_task(settings: SweepSettings) -> SweepSettings:
    overrides = [text for text in settings.overrides if not text.startswith("env.task=")]
    return load({}, [*overrides, "env.task=coffee-pull-v3"])


def test_the_papers_grid() -> None:
    settings = load({"sweep": "paper_metaworld"}, [])
    every = {text.partition("=")[0]: text.partition("=")[2].split(",") for text in settings.overrides}
    assert len(every["env.task"]) == 10
    assert every["seed"] == ["22", "64", "99", "234", "360"]
    listed = jobs.plan(_one_task(load({"sweep": "paper_metaworld"}, ["seed=22"])))
    assert len(listed.jobs) == 8
    assert all(job.plan.lag and job.plan.lag.mean_iterations >= 20 for job in listed.jobs)
    # 10 updates of the policy in an iteration of 500 env steps, and a mean lag of about 205 of them.
    shown = dict(listed.jobs[0].plan.rows())["expected lag"]
    assert re.search(r"updates, 20\d of the policy\)", shown), shown
    learner = listed.jobs[0].plan.settings.learner
    assert learner.updates / learner.policy_every == 10
    assert {job.plan.env_steps for job in listed.jobs} == {5_001_000}


def test_the_small_grid_and_its_learning_rates() -> None:
    grid = jobs.plan(load({"sweep": "paper_metaworld_small"}, []))
    assert len(grid.jobs) == 4 * 3 * 3 * 2
    rates = jobs.plan(load({"sweep": "paper_metaworld_small_rates"}, []))
    assert len(rates.jobs) == 4 * 3 * 2
    for listed in (grid, rates):
        lags = sorted({job.plan.lag.mean_iterations for job in listed.jobs if job.plan.lag})
        assert lags == pytest.approx([1.8, 20.8], abs=0.01)
        assert {job.plan.lag.samples_per_transition for job in listed.jobs if job.plan.lag} == {7.68}
    # The task and the seed that choose the learning rates are not among those that are compared.
    assert not {job.settings.env.task for job in grid.jobs} & {job.settings.env.task for job in rates.jobs}
    assert not {job.settings.seed for job in grid.jobs} & {job.settings.seed for job in rates.jobs}
