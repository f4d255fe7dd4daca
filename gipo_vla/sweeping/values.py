"""What one override of a sweep lists: ``key=1,2,3``, ``key=[1,2],[3]``, ``key=range(1,4)``, ``key=log(a,b)``.

The grammar is Hydra's own, with ``log(a,b)`` for ``tag(log,interval(a,b))``. Commas inside brackets or quotes
separate nothing. Intervals can only be sampled from; ``int(interval(a,b))`` gives whole numbers.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException

from gipo_envs.errors import UserError
from gipo_vla.settings.composition import PATH_KEYS
from gipo_vla.sweeping.settings import key_of

SIGNIFICANT_DIGITS = 4
"""Digits of sampled numbers: enough for any search, and short enough for a folder's name."""


@dataclass(frozen=True)
class Interval:
    """A range to sample from."""

    low: float
    high: float
    logarithmic: bool = False
    """Uniform in the logarithm."""
    whole: bool = False
    """Whole numbers, both ends included."""

    def draw(self, rng: np.random.Generator) -> str:
        """Return a value as an override has it."""
        low, high = (math.log(self.low), math.log(self.high)) if self.logarithmic else (self.low, self.high)
        value = rng.uniform(low, high)
        value = min(max(math.exp(value) if self.logarithmic else value, self.low), self.high)
        return str(round(value)) if self.whole else f"{value:.{SIGNIFICANT_DIGITS}g}"


@dataclass(frozen=True)
class Parameter:
    """A setting and the values that it takes."""

    key: str
    name: str
    """The key with its ``+`` or ``++``, as given."""
    values: tuple[str, ...]
    """Texts that stand behind ``key=``."""
    interval: Interval | None = None


def parse(text: str) -> Parameter:
    """Read one override.

    Raises:
        UserError: it is none, or lists nothing that could be enumerated or drawn from.
    """
    key = key_of(text)
    name, separator, value = text.partition("=")
    if text.startswith("~") or not separator:
        raise UserError(f"{text!r} is not an override of a sweep: write key=value or key=value,value")
    if _is_path(key, value):
        return Parameter(key, name, tuple(value.split(",")))
    parsed = _parse(text)
    if not parsed.is_sweep_override():
        return Parameter(key, name, (value,))
    if parsed.is_interval_sweep():
        return Parameter(key, name, (), _interval(text, parsed.value()))
    if not parsed.is_discrete_sweep() or "glob(" in value:
        raise UserError(f"{text!r}: list the values, for instance {key}=a,b")
    return Parameter(key, name, tuple(parsed.sweep_string_iterator()))


def _is_path(key: str, value: str) -> bool:
    """Whether a value is the path that it looks like, which Hydra's grammar has no place for."""
    return key in PATH_KEYS and value[:1] not in ("'", '"')


def _parse(text: str) -> Override:
    try:
        return OverridesParser(_functions()).parse_override(text)
    except (HydraException, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{text!r} is not an override: {reason}") from error


@cache
def _functions() -> Any:
    functions = create_functions()
    functions.register("log", _log)
    return functions


def _log(start, end):  # type: ignore[no-untyped-def]
    return IntervalSweep(start=float(start), end=float(end), tags={"log"})


# Hydra checks arguments against annotations, and cannot read those that are text.
_log.__annotations__ = {"start": int | float, "end": int | float}


def _interval(text: str, found: Any) -> Interval:
    logarithmic = "log" in found.tags
    whole = isinstance(found.start, int) and isinstance(found.end, int)
    if not found.start < found.end:
        raise UserError(f"{text!r}: the first end must be less than the second")
    if logarithmic and found.start <= 0:
        raise UserError(f"{text!r}: both ends of a logarithmic interval must be above 0")
    return Interval(float(found.start), float(found.end), logarithmic, whole)


@cache
def meaning(key: str, value: str) -> Any:
    """Return the value that a text behind ``key=`` stands for."""
    if _is_path(key, value):
        return None if value == "null" else value
    return _parse(f"{key}={value}").value()


def canonical(key: str, value: str) -> str:
    """Return a value's meaning as text, the same for ``1e-3`` and ``0.001``, for ``1`` and ``1.0``."""
    return json.dumps(json.loads(json.dumps(meaning(key, value)), parse_int=float), sort_keys=True)
