"""Combinations: products, arms, samples, and their order."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gipo_envs.errors import UserError
from gipo_vla.sweeping.grid import combinations, varied_keys
from gipo_vla.sweeping.settings import SweepSettings

KEYS = ("a.b", "c.d", "replay.capacity", "objective.sigma", "seed")
lists = st.dictionaries(
    st.sampled_from(KEYS), st.lists(st.integers(0, 50), min_size=1, max_size=4, unique=True), min_size=1
)


def sweep(*overrides: str, **settings: object) -> SweepSettings:
    return SweepSettings(overrides=overrides, **settings)  # type: ignore[arg-type]


def test_a_grid_by_hand() -> None:
    assert combinations(sweep("a=1,2", "b=x", "c=[1,2],[3]")) == [
        {"a": "1", "b": "x", "c": "[1,2]"},
        {"a": "1", "b": "x", "c": "[3]"},
        {"a": "2", "b": "x", "c": "[1,2]"},
        {"a": "2", "b": "x", "c": "[3]"},
    ]


def test_whole_replicates_follow_each_other() -> None:
    made = combinations(sweep("seed=7,3", "a=1,2"))
    assert [(one["seed"], one["a"]) for one in made] == [("7", "1"), ("7", "2"), ("3", "1"), ("3", "2")]


@given(lists)
def test_a_grid_is_the_product(values: dict[str, list[int]]) -> None:
    overrides = [f"{key}={','.join(map(str, own))}" for key, own in values.items()]
    made = combinations(sweep(*overrides))
    assert len(made) == prod(map(len, values.values()))
    assert len({tuple(sorted(one.items())) for one in made}) == len(made)
    for key, own in values.items():
        assert {one[key] for one in made} == set(map(str, own))
    assert set(varied_keys(sweep(*overrides))) == {key for key, own in values.items() if len(own) > 1}


def test_each_arm_has_the_whole_grid() -> None:
    arms = (("objective=gipo", "objective.sigma=0.5,1"), ("objective=ppo",))
    made = combinations(sweep("seed=0,1", arms=arms))
    assert len(made) == 2 * (2 + 1)
    assert sum(one["objective"] == "ppo" for one in made) == 2
    assert all("objective.sigma" not in one for one in made if one["objective"] == "ppo")
    assert varied_keys(sweep("seed=0,1", arms=arms)) == ["objective", "objective.sigma", "seed"]


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="seed is given twice"):
        combinations(sweep("seed=0", "seed=1"))


# -------------------------------------------------------------------------------------------------- samples


def test_every_sample_runs_with_every_seed() -> None:
    made = combinations(sweep("seed=0,1,2", "lr=log(1e-4,1e-2)", "objective=gipo,ppo,sapo", sample=5))
    assert len(made) == 15
    rates = {one["lr"] for one in made}
    assert len(rates) == 5
    for rate in rates:
        own = [one for one in made if one["lr"] == rate]
        assert {one["seed"] for one in own} == {"0", "1", "2"}
        assert len({one["objective"] for one in own}) == 1


def test_samples_depend_on_their_seed_alone() -> None:
    first = combinations(sweep("lr=log(1e-4,1e-2)", "a=1,2,3", sample=4))
    assert first == combinations(sweep("lr=log(1e-4,1e-2)", "a=1,2,3", sample=4))
    assert combinations(sweep("lr=log(1e-4,1e-2)", "a=1,2,3", sample=9))[:4] == first
    with_more = combinations(sweep("a=1,2,3", "b=interval(0,1)", "lr=log(1e-4,1e-2)", sample=4))
    assert [one["lr"] for one in with_more] == [one["lr"] for one in first]
    other = combinations(sweep("lr=log(1e-4,1e-2)", "a=1,2,3", sample=4, sample_seed=1))
    assert other != first


def test_an_interval_needs_a_number_of_samples() -> None:
    with pytest.raises(UserError, match="sample=N"):
        combinations(sweep("lr=log(1e-4,1e-2)"))
