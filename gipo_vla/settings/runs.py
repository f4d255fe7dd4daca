"""Settings of runs: from a command line, from a run folder, and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from pydantic_core import to_jsonable_python

from gipo_envs.errors import UserError
from gipo_vla import foreign
from gipo_vla.settings import plugins, registry
from gipo_vla.settings.cloning import SftSettings
from gipo_vla.settings.composition import (
    PROTOCOLS,
    by_key,
    command_of,
    compose_yaml,
    is_group,
    protocol,
    repair,
    unknown,
)
from gipo_vla.settings.schema import TrainingSettings

Settings = TypeVar("Settings")
RunSettings = TrainingSettings | SftSettings
"""Settings of a run folder."""

SESSION_KEYS = ("run_dir", "resume", "stop_after")
"""Settings that belong to a session rather than to the run; left out of the digest."""


def typed(values: Any, kind: type[Settings]) -> Settings:
    """Settings of a class from plain values. Raises UserError: naming the first key that does not fit, its
    value and what was expected."""
    return registry.validated(kind, _without_missing(values))


def _without_missing(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {k: _without_missing(v) for k, v in values.items() if v != registry.MISSING_VALUE}
    return values


def load(name: str, overrides: Sequence[str]) -> TrainingSettings:
    """The settings that the arguments of ``python -m gipo_vla.train`` mean. Raises UserError: whatever is
    wrong with them."""
    values = compose_yaml(name, overrides)
    if "sft" in values:
        raise UserError(f"experiment={values.experiment} belongs to python -m gipo_vla.sft")
    return typed(OmegaConf.to_container(values, resolve=True), TrainingSettings)


def load_sft(overrides: Sequence[str]) -> SftSettings:
    """The settings that the arguments of ``python -m gipo_vla.sft`` mean; errors as ``load``."""
    values = compose_yaml("sft", overrides)
    if "iterations" in values:
        raise UserError(
            f"experiment={values.experiment} belongs to python -m gipo_vla.train: sft takes those whose name "
            "ends with _sft"
        )
    return typed(OmegaConf.to_container(values, resolve=True), SftSettings)


def override(base: Settings, overrides: Sequence[str]) -> Settings:
    """The settings of an existing run with overrides, as ``load`` applies them to a fresh composition. Raises
    UserError: an override that is wrong."""
    named = plugins.load(plugins.named_in(overrides))
    values = OmegaConf.create(to_dict(base), flags={"allow_objects": False})
    for text in overrides:
        known = by_key(values)  # a chosen option brings its own
        try:
            parsed = OverridesParser.create().parse_override(repair(text))
        except HydraException as error:
            raise UserError(f"{text!r} is not an override: write key=value") from error
        key, value = parsed.key_or_group, parsed.value()
        if is_group(key, value) and key == PROTOCOLS:
            values.merge_with(protocol(str(value)))
        elif is_group(key, value):
            section = key.replace("/", ".")
            chosen = compose_yaml(command_of(base), [f"{key}={value}"])
            OmegaConf.update(values, section, OmegaConf.select(chosen, section), merge=False)
        elif key in known:
            OmegaConf.update(values, key, value)
        else:
            raise UserError(unknown(key, known))
    if named:
        values.plugins = list(dict.fromkeys([*values.plugins, *named]))
    # Interpolations in what a folder holds are text: nothing of the environment gets into a run by them.
    return typed(OmegaConf.to_container(values, resolve=False), type(base))


def to_dict(settings: Any) -> dict[str, Any]:
    """Plain values, the inverse of ``typed``."""
    return cast(dict[str, Any], to_jsonable_python(settings))


def to_yaml(settings: Any) -> str:
    """What a run folder's config.yaml holds."""
    return yaml.safe_dump(to_dict(settings), sort_keys=False, allow_unicode=True, width=110)


def read_run(path: Path) -> RunSettings:
    """Read a config.yaml, whichever command wrote it. Raises UserError: it cannot be read, or names a plugin
    that nobody has asked for."""
    values = foreign.read_yaml(path)
    named = values.get("plugins") or []
    if not isinstance(named, list):
        raise UserError(f"{path}: plugins is {named!r}: expected a list of module names")
    plugins.load(())
    plugins.require([str(name) for name in named], path.parent)
    return typed(values, SftSettings) if "sft" in values else typed(values, TrainingSettings)


def digest(settings: Any) -> str:
    """Identifies a run's settings: a restart continues a folder only if this is the same."""
    values = {key: value for key, value in to_dict(settings).items() if key not in SESSION_KEYS}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def may_change(settings: Any, key: str) -> bool:
    """Whether a resumed run may have another value of the setting with this dotted key.

    The classes say so: ``fixed`` lists what would make it another run, ``movable`` exceptions from a section
    that is fixed as a whole. The declaration nearest to the setting wins.
    """
    allowed, here = True, settings
    for part in key.split("."):
        if part in getattr(here, "fixed", ()):
            allowed = False
        elif part in getattr(here, "movable", ()):
            allowed = True
        here = getattr(here, part, None)
    return allowed
