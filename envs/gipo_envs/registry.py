"""Families of environments by name.

Every subpackage of ``gipo_envs`` registers its families when it is imported, and all of them are imported
when the first name is looked up: they import their simulators only when an environment is made, so that a
trainer's main process refuses bad settings within milliseconds. A family of a user's is registered by a
plugin.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys

from gipo_envs import gl
from gipo_envs.errors import UserError, nearest
from gipo_envs.family import Expert, Family
from gipo_envs.protocol import Environment, EnvironmentSettings, EnvironmentSpec

_families: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Make a family known by its name.

    Raises:
        ValueError: another module has registered a family of this name.
    """
    known = _families.get(family.name)
    if known is not None and known.make.__module__ != family.make.__module__:
        raise ValueError(f"the environment family {family.name} is registered twice")
    _families[family.name] = family
    return family


@functools.cache
def _import_subpackages() -> None:
    package = sys.modules["gipo_envs"]
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            importlib.import_module(f"gipo_envs.{module.name}")


def families() -> dict[str, Family]:
    """All families by name, those of this package and those that plugins registered."""
    _import_subpackages()
    return dict(sorted(_families.items()))


def get(name: str) -> Family:
    """The family of that name.

    Raises:
        UserError: there is none.
    """
    known = families()
    if name not in known:
        raise UserError(f"unknown environment family {name!r}; {nearest(name, known)}")
    return known[name]


def make_spec(settings: EnvironmentSettings) -> EnvironmentSpec:
    """The spec that ``make(settings)`` would have, without constructing a simulator.

    Raises:
        UserError: a setting is wrong; the message says which and what is expected.
    """
    return get(settings.family).make_spec(settings)


def needs_opengl(settings: EnvironmentSettings) -> bool:
    """Whether workers will draw images, so that OpenGL must be there."""
    return "images" in settings.observations and get(settings.family).needs_opengl


def make(settings: EnvironmentSettings) -> Environment:
    """Construct an environment in this process.

    Raises:
        UserError: a setting is wrong, or pixels are asked for and no OpenGL backend works.
    """
    if needs_opengl(settings):
        gl.choose()  # refuse now, not at the first picture
    return get(settings.family).make(settings)


def require_experts(name: str) -> None:
    """Refuse a family without scripted experts.

    Raises:
        UserError: naming the families that have some.
    """
    if get(name).make_expert is None:
        having = ", ".join(key for key, family in families().items() if family.make_expert)
        raise UserError(
            f"{name} has no scripted experts (those of {having} do): take recorded demonstrations instead, "
            "demonstrations=libero_hdf5 or demonstrations=lerobot"
        )


def make_expert(name: str, task: str) -> Expert:
    """The expert of a task: a pure function of what its family says it reads, for demonstrations only.

    Raises:
        UserError: the family has none.
    """
    require_experts(name)
    make_one = get(name).make_expert
    assert make_one is not None
    return make_one(task)
