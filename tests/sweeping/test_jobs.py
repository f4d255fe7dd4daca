"""Jobs: what applies, what is equal, what they are called, and that all are checked."""

from __future__ import annotations

import pytest

from gipo_envs.errors import UserError
from gipo_vla import config
from gipo_vla.sweeping.jobs import Job, digest_of, plan
from gipo_vla.sweeping.settings import SweepSettings, load
from tests.conftest import TINY


def tiny(*overrides: str) -> tuple[str, ...]:
    """Overrides, with those of a tiny run for what they leave open."""
    keys = {text.partition("=")[0] for text in overrides}
    return (*(text for text in TINY if text.partition("=")[0] not in keys), *overrides)


def jobs_of(*overrides: str, **settings: object) -> tuple[Job, ...]:
    return plan(SweepSettings(overrides=tiny(*overrides), **settings)).jobs  # type: ignore[arg-type]


def own(job: Job) -> dict[str, str]:
    """A job's overrides without those that all have."""
    return {key: value for key, value in job.overrides if f"{key}={value}" not in TINY}


# --------------------------------------------------------------------------------------- what applies to whom


def test_settings_that_an_option_lacks_are_left_out_for_it() -> None:
    listed = plan(SweepSettings(overrides=(*TINY, "objective=gipo,ppo,sapo", "objective.sigma=0.5,1.0")))
    assert [own(job) for job in listed.jobs] == [
        {"objective": "gipo", "objective.sigma": "0.5"},
        {"objective": "gipo", "objective.sigma": "1.0"},
        {"objective": "ppo"},
        {"objective": "sapo"},
    ]
    assert listed.collapsed == 2
    assert listed.left_out == ("objective.sigma",)


def test_each_option_keeps_its_own_settings() -> None:
    made = jobs_of("objective=gipo,ppo", "objective.sigma=0.5,1.0", "objective.clip_low=0.1,0.2,0.3")
    assert sum(job.settings.objective.name == "gipo" for job in made) == 2
    assert sum(job.settings.objective.name == "ppo" for job in made) == 3


def test_other_groups_collapse_too() -> None:
    made = jobs_of(
        "credit=gae,group", "credit.gae_lambda=0.9,0.95", "rollout.envs_per_worker=8", "rollout.group_size=8"
    )
    assert [job.settings.credit.name for job in made] == ["gae", "gae", "group"]


def test_a_ready_made_sweep_can_be_narrowed_to_one_option() -> None:
    """Its sigma is for an option that is gone; the jobs are those of the whole sweep."""
    whole = plan(load({"sweep": "paper_metaworld_small_rates"}, []))
    part = plan(load({"sweep": "paper_metaworld_small_rates"}, ["objective=ppo"]))
    ppo = {job.digest for job in whole.jobs if job.settings.objective.name == "ppo"}
    assert {job.digest for job in part.jobs} == ppo
    assert part.left_out == ("objective.sigma", "objective.sigma_neg_ratio")


def test_what_is_given_beside_a_ready_made_sweep_must_apply() -> None:
    with pytest.raises(UserError, match=r"objective\.sigma"):
        plan(load({"sweep": "paper_metaworld_small_rates"}, ["objective=ppo", "objective.sigma=0.5"]))


@pytest.mark.parametrize(
    "overrides, named",
    [
        (("objective=ppo,sapo", "objective.sigma=0.5,1.0"), "objective.sigma"),
        (("objective=gipo,ppo", "objective.sigm=0.5"), "nearest: objective.sigma"),
        (("objective=gipo,pppo",), "objective=pppo"),
        (("policy.bins=16,1",), "policy.bins is 1"),
        (("policy.bins=16,1",), "in the job policy.bins=1"),
        (("replay.capacity=640,10",), "replay.capacity is 10"),
        (("env.task=reach,reech",), "reech"),
        (("iterations=2,2.5",), "iterations"),
        (("learner.threads=1,x",), "learner.threads"),
    ],
)
def test_any_mistake_of_any_job_is_found(overrides: tuple[str, ...], named: str) -> None:
    with pytest.raises(UserError) as caught:
        jobs_of(*overrides)
    assert named in str(caught.value)


def test_nothing_is_not_a_sweep() -> None:
    with pytest.raises(UserError, match="what to run"):
        plan(SweepSettings())


@pytest.mark.parametrize(
    "overrides",
    [
        ("objective=sapo", "objective.tau_neg=1.05", "seed=3"),
        ("credit=group", "rollout.envs_per_worker=8", "rollout.group_size=4"),
        ("policy.hidden=[8,8]", "env.task=[reach,push]", "replay.max_lag=null"),
        ("env.assets=/some where", "telemetry.wandb_project='a b'"),
        ("experiment=metaworld_button_press", "replay.segment_length=32", "replay.capacity=6400"),
        ("env.camera={height: 40}",),
        ("+stop_after=1",),
    ],
    ids=str,
)
def test_settings_are_those_of_the_command_line(overrides: tuple[str, ...]) -> None:
    (job,) = jobs_of(*overrides)
    assert job.settings == config.load("train", tiny(*overrides))
    assert job.arguments == list(tiny(*overrides))


# ---------------------------------------------------------------------------------------------------- names


def test_names_say_what_is_varied() -> None:
    made = jobs_of("objective=gipo,ppo", "objective.sigma=0.5", "replay.capacity=640,1280", "seed=0")
    words = [job.name.rpartition("-")[0] for job in made]
    assert words == ["gipo-capacity640", "gipo-capacity1280", "ppo-capacity640", "ppo-capacity1280"]
    assert len({job.name for job in made}) == len(made)
    assert all(job.name.endswith(job.digest) for job in made)


def test_names_are_fit_for_folders() -> None:
    made = jobs_of("env.task=[reach,push],reach", "env.assets=/a/b,/c d")
    assert all(set("/ []'") & set(job.name) == set() for job in made)
    long = jobs_of(f"telemetry.wandb_project={'x' * 300},y")
    assert all(len(job.name) < 100 for job in long)


def test_a_digest_stays_the_same_for_ever() -> None:
    """Finished jobs of old sweeps are found by it."""
    assert digest_of((("objective", "gipo"), ("objective.sigma", "0.5"), ("seed", "0"))) == "53ccbebf88"


def test_a_digest_is_of_meaning() -> None:
    plain = (("learner.policy_learning_rate", "1e-3"), ("seed", "1"))
    assert digest_of(plain) == digest_of((("seed", "1"), ("learner.policy_learning_rate", "0.001")))
    assert digest_of(plain) == digest_of((*plain, ("stop_after", "3")))
    assert digest_of(plain) == digest_of((("+seed", "1"), plain[0]))
    assert digest_of(plain) != digest_of((plain[0], ("seed", "2")))


def test_growing_a_sweep_keeps_its_jobs() -> None:
    small = {job.digest for job in jobs_of("objective.sigma=0.5", "seed=0")}
    large = {job.digest for job in jobs_of("seed=1,0", "objective.sigma=1.0,0.5")}
    assert small < large


def test_equal_jobs_are_one() -> None:
    assert len(jobs_of("learner.policy_learning_rate=1e-3,0.001", "seed=1")) == 1


def test_factors_are_what_jobs_may_differ_in() -> None:
    """With options that lack a setting, and with arms that leave to the defaults what others set."""
    listed = plan(SweepSettings(overrides=tiny("objective=gipo,ppo", "objective.sigma=0.5,1.0", "seed=0")))
    assert listed.factors == ("objective", "objective.sigma")
    assert [dict(job.factors) for job in listed.jobs] == [
        {"objective": "gipo", "objective.sigma": 0.5},
        {"objective": "gipo", "objective.sigma": 1.0},
        {"objective": "ppo"},
    ]
    arms = (("credit=group",), ("credit=group", "credit.normalize=running"), ("replay.capacity=1280",))
    common = ("rollout.envs_per_worker=8", "rollout.group_size=8", "seed=1,0")
    listed = plan(SweepSettings(overrides=tiny(*common)[:-3] + common, arms=arms))
    assert listed.factors == ("credit", "credit.normalize", "replay.capacity", "seed")
    assert [tuple(job.factors.values()) for job in listed.jobs[:3]] == [
        ("group", "none", 640, 1),
        ("group", "running", 640, 1),
        ("gae", "running", 1280, 1),
    ]


# ------------------------------------------------------------------------------------------------ predictions


def test_env_steps_and_lag_are_those_of_the_run() -> None:
    (job,) = jobs_of("iterations=7", "rollout.env_steps=150", "replay.capacity=640")
    assert job.env_steps == 7 * 152  # 38 vector steps of 4 environments
    assert job.staleness.iterations_held == pytest.approx(640 / 152)
    (ranks,) = jobs_of("iterations=7", "rollout.env_steps=150", launch="torchrun", nproc_per_node=2)
    assert ranks.env_steps == 7 * 152
