"""Registry of credits, the protocol, and settings as pydantic fields."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import BaseModel, Field, ValidationError

from gipo_envs.errors import UserError
from gipo_vla import credit
from gipo_vla.credit import AnyCreditSettings, CreditAssigner, Gae, GaeSettings, GroupRelative, GroupSettings


def test_create_finds_the_assigner_of_the_settings() -> None:
    assert isinstance(credit.create(GaeSettings()), Gae)
    assert isinstance(credit.create(GroupSettings()), GroupRelative)


def test_registry_lists_what_is_available() -> None:
    assert {"gae", "group"} <= set(credit.names())
    with pytest.raises(UserError, match=r"credit\.name is grpo: there is no such credit; nearest: group"):
        credit.get("grpo")
    with pytest.raises(ValueError, match="twice"):
        credit.register("gae")(Gae)


@pytest.mark.parametrize("settings", [GaeSettings(), GroupSettings()], ids=repr)
def test_stateless_credits_keep_the_checkpoint_contract(settings: AnyCreditSettings) -> None:
    assigner: CreditAssigner = credit.create(settings)
    assert assigner.state_dict() == {}
    assigner.load_state_dict({})


def test_settings_work_as_pydantic_fields() -> None:
    class Config(BaseModel, extra="forbid"):
        credit: Annotated[AnyCreditSettings, Field(discriminator="name")]

    assert Config.model_validate({"credit": {"name": "gae", "gamma": 0.9}}).credit == GaeSettings(gamma=0.9)
    assert Config.model_validate({"credit": {"name": "group"}}).credit == GroupSettings()
    with pytest.raises(ValidationError, match="it must be between 0 and 1"):
        Config.model_validate({"credit": {"name": "gae", "gamma": 2}})
