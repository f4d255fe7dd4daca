"""What one override lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gipo_envs.errors import UserError
from gipo_vla.sweeping.values import Interval, canonical, parse


@pytest.mark.parametrize(
    "text, key, values",
    [
        ("seed=0,1,2", "seed", ("0", "1", "2")),
        ("seed=3", "seed", ("3",)),
        ("objective=gipo,ppo", "objective", ("gipo", "ppo")),
        ("policy.hidden=[16,16]", "policy.hidden", ("[16,16]",)),
        ("policy.hidden=[16],[32,32]", "policy.hidden", ("[16]", "[32,32]")),
        ("env.task=[reach,push],reach", "env.task", ("[reach,push]", "reach")),
        ("seed=range(0,3)", "seed", ("0", "1", "2")),
        ("objective=choice(gipo,sapo)", "objective", ("gipo", "sapo")),
        ("replay.max_lag=null,9", "replay.max_lag", ("null", "9")),
        ("telemetry.wandb_project='a,b'", "telemetry.wandb_project", ("'a,b'",)),
        ("policy.checkpoint=/a b/c=d,/e", "policy.checkpoint", ("/a b/c=d", "/e")),
        ("+replay.max_lag=1,2", "replay.max_lag", ("1", "2")),
    ],
)
def test_lists(text: str, key: str, values: tuple[str, ...]) -> None:
    parameter = parse(text)
    assert (parameter.key, parameter.values, parameter.interval) == (key, values, None)


@pytest.mark.parametrize(
    "text, interval",
    [
        ("x.y=interval(0.1,0.5)", Interval(0.1, 0.5)),
        ("x.y=log(1e-4,1e-3)", Interval(1e-4, 1e-3, logarithmic=True)),
        ("x.y=tag(log,interval(1e-4,1e-3))", Interval(1e-4, 1e-3, logarithmic=True)),
        ("x.y=int(interval(2,9))", Interval(2, 9, whole=True)),
        ("x.y=int(log(10,1000))", Interval(10, 1000, logarithmic=True, whole=True)),
    ],
)
def test_intervals(text: str, interval: Interval) -> None:
    assert parse(text).interval == interval


@pytest.mark.parametrize(
    "text, named",
    [
        ("seed", "key=value"),
        ("~seed", "key=value"),
        ("x=interval(2,1)", "less than"),
        ("x=log(0,1)", "above 0"),
        ("x=interval(1)", "interval(1)"),
        ("x=surprise(1,2)", "surprise"),
        ("x=[1,2", "x=[1,2"),
        ("objective=glob(*)", "list the values"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(text: str, named: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    low=st.floats(1e-6, 1e3), factor=st.floats(1.5, 1e4), logarithmic=st.booleans(), seed=st.integers(0, 99)
)
def test_draws_stay_inside(low: float, factor: float, logarithmic: bool, seed: int) -> None:
    interval = Interval(low, low * factor, logarithmic)
    drawn = float(interval.draw(np.random.default_rng(seed)))
    # Rounding to four digits may go past an end by that much.
    assert low * (1 - 1e-3) <= drawn <= low * factor * (1 + 1e-3)


def test_logarithmic_draws_are_uniform_in_the_logarithm() -> None:
    rng = np.random.default_rng(0)
    drawn = [float(Interval(1e-4, 1e-2, logarithmic=True).draw(rng)) for _ in range(400)]
    assert 0.4 < np.mean(np.array(drawn) < 1e-3) < 0.6


def test_whole_draws_reach_both_ends() -> None:
    rng = np.random.default_rng(0)
    assert {Interval(1, 3, whole=True).draw(rng) for _ in range(100)} == {"1", "2", "3"}


@pytest.mark.parametrize(
    "first, second, same",
    [
        ("1e-3", "0.001", True),
        ("1", "1.0", True),
        ("true", "True", True),
        ("[1,2]", "[1.0, 2]", True),
        ("gipo", "'gipo'", True),
        ("1", "true", False),
        ("1", "'1'", False),
        ("null", "0", False),
    ],
)
def test_meaning_decides_what_is_the_same(first: str, second: str, same: bool) -> None:
    assert (canonical("x", first) == canonical("x", second)) == same
