"""Families of environments by name.

A family is a module with two functions::

    make_spec(settings: EnvironmentSettings) -> EnvironmentSpec     # data only, no simulator
    make(settings: EnvironmentSettings) -> Environment

Adding one is a line in ``FAMILIES``. Modules are imported when first asked for and import their simulator
only in ``make``, so that a trainer's main process refuses bad settings within milliseconds.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from gipo_envs.errors import UserError, nearest
from gipo_envs.protocol import Environment, EnvironmentSettings, EnvironmentSpec

FAMILIES: dict[str, str] = {
    "metaworld": "gipo_envs.metaworld",
    "point_reach": "gipo_envs.point_reach",
    "libero_spatial": "gipo_envs.libero",
    "libero_object": "gipo_envs.libero",
    "libero_goal": "gipo_envs.libero",
    "libero_10": "gipo_envs.libero",
    "libero_90": "gipo_envs.libero",
    "recorded": "gipo_envs.recorded",
}
"""Family name -> dotted name of its module."""
WITHOUT_OPENGL = frozenset({"point_reach", "recorded"})
"""Families that make their images without it."""


def _family_module(name: str) -> ModuleType:
    if name not in FAMILIES:
        raise UserError(f"unknown environment family {name!r}; {nearest(name, FAMILIES)}")
    return importlib.import_module(FAMILIES[name])


def make_spec(settings: EnvironmentSettings) -> EnvironmentSpec:
    """The spec that ``make(settings)`` would have, without constructing a simulator.

    Raises:
        UserError: a setting is wrong; the message says which and what is expected.
    """
    spec: EnvironmentSpec = _family_module(settings.family).make_spec(settings)
    return spec


def needs_opengl(settings: EnvironmentSettings) -> bool:
    """Whether workers will draw images, so that OpenGL must be there."""
    return "images" in settings.observations and settings.family not in WITHOUT_OPENGL


def make(settings: EnvironmentSettings) -> Environment:
    """Construct an environment in this process.

    Raises:
        UserError: a setting is wrong, or pixels are asked for and no OpenGL backend works.
    """
    environment: Environment = _family_module(settings.family).make(settings)
    return environment
