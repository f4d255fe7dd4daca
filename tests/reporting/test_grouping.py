"""What counts as a difference between runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gipo_vla.reporting.grouping import group, label, varying_factors
from gipo_vla.reporting.runs import Run

ROWS = [{"iteration": 1, "env_steps": 1}]


def run(name: str, task: str = "reach", **config: Any) -> Run:
    flat = {key.replace("__", "."): value for key, value in config.items()}
    return Run(name, {"env.task": task, **flat}, ROWS, settings={"env": {"task": task}})


def test_seeds_tasks_and_paths_are_no_factors() -> None:
    runs = [
        run("a", "reach", seed=0, run_dir="x", telemetry__wandb="off", objective__name="gipo"),
        run("b", "push", seed=1, run_dir="y", telemetry__wandb="on", objective__name="gipo"),
    ]
    factors, _, (only,) = group(runs)
    assert factors == [] and only.label == "gipo" and len(only.runs) == 2


def test_every_other_difference_is_a_factor_and_sigma_is_missing_where_there_is_none() -> None:
    runs = [
        run("a", objective__name="gipo", objective__sigma=1.0, replay__capacity=20000),
        run("b", objective__name="gipo", objective__sigma=0.2, replay__capacity=5000),
        run("c", objective__name="ppo", objective__clip_low=0.2, replay__capacity=5000),
    ]
    factors, _, configurations = group(runs)
    assert factors == ["objective.name", "objective.sigma", "replay.capacity"]
    assert [one.label for one in configurations] == [
        "gipo, sigma 0.2, capacity 5,000",
        "gipo, sigma 1, capacity 20,000",
        "ppo, capacity 5,000",
    ]


def test_a_sigma_that_follows_the_data_stands_behind_the_numbers() -> None:
    runs = [
        run(str(sigma), objective__name="gipo", objective__sigma=sigma, replay__capacity=capacity)
        for sigma in ("auto", 0.5, 1.0)
        for capacity in (5000, 20000)
    ]
    labels = [one.label for one in group(runs).configurations]
    assert labels[::2] == [f"sigma {sigma}, capacity 5,000" for sigma in ("0.5", "1", "auto")]


def test_what_follows_from_the_task_is_no_factor_but_the_algorithm_always_is() -> None:
    runs = [
        run("a", "reach", env__reward_scale=0.1, iterations=10, objective__sigma=1.0),
        run("b", "push", env__reward_scale=0.2, iterations=20, objective__sigma=0.5),
    ]
    assert varying_factors(runs) == ["objective.sigma"]
    runs.append(run("c", "push", env__reward_scale=0.3, iterations=20, objective__sigma=0.5))
    assert varying_factors(runs) == ["objective.sigma", "env.reward_scale"]


def test_what_follows_from_the_experiment_is_said_by_its_name() -> None:
    runs = [
        run("a", experiment="small", policy__hidden="[64]", learner__updates=4, replay__capacity=10),
        run("b", experiment="large", policy__hidden="[256]", learner__updates=8, replay__capacity=20),
    ]
    assert varying_factors(runs) == ["experiment", "replay.capacity"]


def test_what_an_option_brings_with_it_is_said_by_its_name() -> None:
    gae = run("a", credit__name="gae", credit__normalize="running", credit__gamma=0.99, rollout__group_size=1)
    grouped = run("b", credit__name="group", credit__normalize="none", rollout__group_size=8)
    assert varying_factors([gae, grouped]) == ["credit.name"]
    other = run("c", credit__name="group", credit__normalize="running", rollout__group_size=8)
    assert varying_factors([gae, grouped, other]) == ["credit.name", "credit.normalize"]
    assert varying_factors([grouped, other]) == ["credit.normalize"]


def test_what_was_set_for_each_algorithm_apart_is_no_factor_beside_it() -> None:
    runs = [
        run("a", objective__name="gipo", replay__capacity=9, learner__rate=1e-3, learner__updates=4),
        run("b", objective__name="ppo", replay__capacity=9, learner__rate=3e-4, learner__updates=4),
        run("c", objective__name="ppo", replay__capacity=1, learner__rate=1e-3, learner__updates=8),
    ]
    factors, confounded, configurations = group(runs)
    assert (factors, confounded) == (
        ["objective.name", "replay.capacity"],
        ["learner.rate", "learner.updates"],
    )
    assert [one.label for one in configurations] == ["gipo, capacity 9", "ppo, capacity 1", "ppo, capacity 9"]
    runs.append(run("d", objective__name="gipo", replay__capacity=9, learner__rate=3e-4, learner__updates=4))
    factors, confounded, configurations = group(runs)
    assert (factors[-1], confounded) == ("learner.rate", ["learner.updates"])
    assert group([runs[0], runs[3]]).factors == ["learner.rate"]


def test_only_what_a_sweep_varied_is_a_factor_where_it_is_recorded() -> None:
    """The loose runs differ in the learner's updates too, which no override of the sweep set."""
    loose = [
        run("a", objective__name="gipo", objective__sigma=1.0, learner__updates=4, env__family="x", seed=0),
        run("b", objective__name="gipo", objective__sigma=0.5, learner__updates=8, env__family="y", seed=1),
        run("c", objective__name="ppo", learner__updates=4, env__family="x", seed=0),
    ]
    given = (
        ("objective=gipo", "objective.sigma=1", "seed=0"),
        ("objective=gipo", "objective.sigma=0.5", "seed=1"),
        ("objective=ppo", "seed=0"),
    )
    known = [replace(one, overrides=texts) for one, texts in zip(loose, given)]
    assert varying_factors(known) == ["objective.name", "objective.sigma"]
    assert set(varying_factors(loose)) == {
        "objective.name",
        "objective.sigma",
        "env.family",
        "learner.updates",
    }
    assert varying_factors([*known[:2], loose[2]]) == varying_factors(loose)
    groups = [replace(one, overrides=(*texts, f"+env={one.name}")) for one, texts in zip(loose, given)]
    assert varying_factors(groups) == ["objective.name", "objective.sigma", "env.family"]


def test_whole_numbers_and_floats_of_one_value_are_one() -> None:
    assert varying_factors([run("a", learner__clip=1), run("b", learner__clip=1.0)]) == []


def test_values_that_differ_late_have_different_labels() -> None:
    labels = [
        one.label
        for one in group(
            [run("a", learner__rate=0.12345678), run("b", learner__rate=0.12345679)]
        ).configurations
    ]
    assert labels == ["rate 0.12345678", "rate 0.12345679"]


def test_labels_use_whole_keys_where_short_ones_would_be_the_same() -> None:
    factors = ["learner.clip", "value.clip"]
    assert label({"learner.clip": 1.0, "value.clip": None}, factors) == "learner.clip 1, value.clip none"


def test_numbers_are_ordered_by_size() -> None:
    runs = [run(str(capacity), replay__capacity=capacity) for capacity in (20000, 1000, 5000)]
    labels = [one.label for one in group(runs).configurations]
    assert labels == ["capacity 1,000", "capacity 5,000", "capacity 20,000"]
