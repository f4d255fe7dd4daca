"""Registry of credits, the protocol, and settings as pydantic fields."""

from __future__ import annotations

import pytest

from gipo_envs.errors import UserError
from gipo_vla.credit import CreditAssigner, CreditSettings, Gae, GaeSettings, GroupRelative, GroupSettings
from gipo_vla.settings.registry import credits


def test_settings_build_their_assigner() -> None:
    assert isinstance(GaeSettings().build(), Gae)
    assert isinstance(GroupSettings().build(), GroupRelative)


def test_registry_lists_what_is_available() -> None:
    assert {"gae", "graph", "group", "information_gain"} <= set(credits.classes())
    with pytest.raises(UserError, match=r"credit\.name is 'grpo': there is no such credit; nearest: group"):
        credits.get("grpo")


def test_only_discounts_depend_on_how_long_an_action_is_held() -> None:
    assert GaeSettings(gamma=0.9).per_action(2) == GaeSettings(gamma=0.9**2)
    assert GroupSettings().per_action(2) == GroupSettings()


@pytest.mark.parametrize("settings", [GaeSettings(), GroupSettings()], ids=repr)
def test_stateless_credits_keep_the_checkpoint_contract(settings: CreditSettings) -> None:
    assigner: CreditAssigner = settings.build()
    assert assigner.state_dict() == {}
    assigner.load_state_dict({})


def test_settings_are_made_from_plain_values() -> None:
    assert credits.validate({"name": "gae", "gamma": 0.9}) == GaeSettings(gamma=0.9)
    assert credits.validate({"name": "group"}) == GroupSettings()
    with pytest.raises(UserError, match="it must be between 0 and 1"):
        credits.validate({"name": "gae", "gamma": 2})
