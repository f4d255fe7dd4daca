"""Kept for branches that still import it; see ``gipo_vla.settings.composition``."""

from gipo_vla.settings.composition import (  # noqa: F401
    MISSING,
    PATH_KEYS,
    compose_yaml,
    config_folder,
    groups,
    known_keys,
    nearest_key,
    repair,
)
