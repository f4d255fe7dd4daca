"""Settings classes by name: objectives, credits, scorers, policies, sources of demonstrations.

A frozen dataclass whose field ``name`` has a default (``name: Literal["mine"] = "mine"``) is registered with
a decorator, ``@objectives.register``. From then on ``objective=mine objective.width=2`` works on every
command line: the option, its defaults, its checks and its help follow from the class. Classes of this project
are found by importing every module of a package; those of a user's are registered by a plugin.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, Generic, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from gipo_envs.errors import UserError, nearest

Settings = TypeVar("Settings")


class Registry(Generic[Settings]):
    """The settings classes that one section of a run's settings may hold.

    Args:
        section: dotted key of the section, for instance ``credit.scorer``.
        kind: what a class stands for, in messages.
        package: dotted name of the package (or module) whose modules register the project's own classes.
    """

    def __init__(self, section: str, kind: str, package: str) -> None:
        self.section, self.kind, self._package = section, kind, package
        self._classes: dict[str, type[Settings]] = {}

    @property
    def group(self) -> str:
        """The name of the config group, ``credit/scorer``."""
        return self.section.replace(".", "/")

    def register(self, cls: type[Settings]) -> type[Settings]:
        """Make a settings class known; a decorator.

        Raises:
            TypeError: it is no frozen dataclass, or a field lacks a default.
            ValueError: another class has this name.
        """
        if not dataclasses.is_dataclass(cls):
            raise TypeError(
                f"{cls.__name__} is no dataclass: put @dataclass(frozen=True) below the decorator"
            )
        name = str(next(field.default for field in dataclasses.fields(cls) if field.name == "name"))
        known = self._classes.get(name)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise ValueError(f"the {self.kind} {name} is registered twice, by {known} and {cls}")
        self._classes[name] = cls
        return cls

    def classes(self) -> dict[str, type[Settings]]:
        """All classes by name, sorted."""
        _import_modules(self._package)
        return dict(sorted(self._classes.items()))

    def get(self, name: str) -> type[Settings]:
        """The class of that name. Raises UserError: there is none."""
        classes = self.classes()
        if name not in classes:
            raise UserError(
                f"{self.section}.name is {name!r}: there is no such {self.kind}; {nearest(name, classes)}"
            )
        return classes[name]

    def validate(self, value: Any) -> Settings:
        """An instance from a mapping that names its class under ``name`` (or from the bare name). Raises
        UserError: naming the first key that does not fit."""
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return value  # type: ignore[return-value]
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise UserError(f"{self.section} is {value!r}: expected settings with a name")
        return validated(self.get(value["name"]), value, self.section)


@functools.cache
def _import_modules(package: str) -> None:
    module = importlib.import_module(package)
    for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
        importlib.import_module(f"{package}.{found.name}")


objectives: Registry[Any] = Registry("objective", "objective", "gipo_vla.objectives")
credits: Registry[Any] = Registry("credit", "credit", "gipo_vla.credit")
scorers: Registry[Any] = Registry("credit.scorer", "scorer", "gipo_vla.credit.information_gain")
policies: Registry[Any] = Registry("policy", "policy", "gipo_vla.policies")
demonstrations: Registry[Any] = Registry(
    "demonstrations", "source of demonstrations", "gipo_vla.imitation.settings"
)
ALL = (objectives, credits, scorers, policies, demonstrations)


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    cls.__pydantic_config__ = config | getattr(cls, "__pydantic_config__", {})
    return TypeAdapter(cls)


def validated(cls: type[Settings], values: Any, section: str = "") -> Settings:
    """An instance of a settings class from plain values.

    Args:
        section: dotted key of the values, for messages; empty for a whole run's.

    Raises:
        UserError: naming the first key that does not fit, its value and what was expected.
    """
    try:
        instance: Settings = _adapter(cast(Any, cls)).validate_python(values)
    except ValidationError as error:
        raise UserError(_first_problem(error, section)) from error
    return instance


def check(holds: bool, key: str, value: Any, must: str) -> None:
    """Refuse a value of a settings class.

    Args:
        key: dotted.
        must: what it must do or be, as the message says it.

    Raises:
        UserError: it does not hold.
    """
    if not holds:
        raise UserError(f"{key} is {value}: it must {must}")


def _first_problem(error: ValidationError, section: str) -> str:
    problems = error.errors(include_url=False)
    problem = problems[0]
    place = [str(part) for part in problem["loc"]]
    message = problem["msg"][0].lower() + problem["msg"][1:]
    if place and _is_kind(place[-1]):
        # A setting that may be of several kinds: one problem for each, with the kind behind the key.
        place.pop()
        others = [own["msg"] for own in problems[1:] if list(own["loc"][:-1]) == place]
        message = " or ".join([message, *(text.removeprefix("Input should be ") for text in others)])
    key = ".".join([section] * bool(section) + place)
    if problem["type"] == "value_error":  # raised by a settings class: its message is complete
        return str(problem["ctx"]["error"])
    if problem["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        return f"unknown setting {key!r}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    return f"{key} is {problem['input']!r}: {message}"


def _is_kind(part: str) -> bool:
    """Whether pydantic names one of a setting's kinds, not a key."""
    return part in ("float", "int", "str", "bool") or part.startswith("literal[")


@functools.cache
def schema(cls: Any) -> dict[str, dict[str, Any]]:
    """The JSON schema of each setting of a class; ``description`` is the string below the field, in one
    paragraph (that of a base class where the class itself has none)."""
    properties: dict[str, dict[str, Any]] = _adapter(cls).json_schema()["properties"]
    bases = [schema(cast(Any, base)) for base in cls.__mro__[1:] if dataclasses.is_dataclass(base)]
    for name, own in properties.items():
        above = (base[name]["description"] for base in bases if name in base)
        own["description"] = " ".join((own.get("description") or next(above, "")).split())
    return properties


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Plain values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


MISSING_VALUE = "???"
"""How OmegaConf writes a value that the user has to give."""


def defaults(cls: type[Any]) -> dict[str, Any]:
    """The defaults of a settings class as plain values; a setting without one is ``???``."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
        else:
            values[field.name] = MISSING_VALUE if field.default is dataclasses.MISSING else field.default
    return cast(dict[str, Any], to_jsonable_python(values))
