"""Kept for branches that still import it; see ``gipo_vla.settings``."""

from typing import Any

from gipo_vla.settings.cloning import *  # noqa: F403
from gipo_vla.settings.composition import compose_yaml, config_folder, groups  # noqa: F401
from gipo_vla.settings.runs import (  # noqa: F401
    SESSION_KEYS,
    digest,
    from_yaml,
    load,
    override,
    read_yaml,
    to_dict,
    to_yaml,
    typed,
)
from gipo_vla.settings.schema import *  # noqa: F403
from gipo_vla.settings.schema import TrainingSettings as Config

ObjectiveSettings = Any


def from_dict(values: Any) -> Config:
    return typed(values, Config)
