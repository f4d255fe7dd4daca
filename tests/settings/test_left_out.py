"""An experiment's settings for its own option of a group, where the command line chooses another option."""

from __future__ import annotations

import pytest

from gipo_envs.errors import UserError
from gipo_vla.settings import runs
from gipo_vla.settings.composition import groups


@pytest.mark.parametrize("option", groups()["credit"])
def test_every_credit_goes_with_the_default_experiment(option: str) -> None:
    assert runs.load("train", [f"credit={option}"]).credit.name == option


@pytest.mark.parametrize("option", groups()["objective"])
def test_every_objective_goes_with_the_default_experiment(option: str) -> None:
    assert runs.load("train", [f"objective={option}"]).objective.name == option


def test_what_the_other_option_has_stays() -> None:
    """The default experiment shortens gae's horizon; information_gain has one, too, and group has none."""
    assert runs.load("train", ["credit=information_gain"]).credit.gamma == 0.99
    assert not hasattr(runs.load("train", ["credit=group"]).credit, "gamma")


def test_what_the_command_line_gives_is_not_left_out() -> None:
    with pytest.raises(UserError, match=r"credit\.gamma"):
        runs.load("train", ["credit=group", "credit.gamma=0.9"])


def test_another_policy_takes_nothing_from_the_default_one() -> None:
    tiny = runs.load("train", ["policy=openvla_oft_tiny", "env.observations=[images,proprio]"]).policy
    assert tiny.head == "auto"
