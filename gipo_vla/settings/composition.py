"""YAML files and a command line to settings: Hydra's compose API, with messages of our own.

Defaults come from the settings classes: every section and every registered class is put into Hydra's store as
a node of plain values, and the files in configs/ hold only what an option or an experiment changes. An option
of a group is a registered class (``objective=ppo``), a family of environments (``env=metaworld``) or a file
(``experiment=point_reach``).

The compose API is used instead of ``@hydra.main`` because the run folder, the messages and the exit status
are ours: every rank of a torchrun has to agree on one run folder, which Hydra's own cannot promise.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import gipo_envs
from gipo_envs import EnvironmentSettings
from gipo_envs.errors import UserError, nearest
from gipo_vla.settings import plugins, registry
from gipo_vla.settings.cloning import SftSettings
from gipo_vla.settings.schema import TrainingSettings

ROOTS: dict[str, type[Any]] = {"train": TrainingSettings, "sft": SftSettings}
"""What configs/<name>.yaml composes."""


def config_folder() -> Path:
    """The folder of YAML files: inside the package when installed from a wheel, else beside it."""
    package = Path(__file__).parent.parent
    installed = package / "configs"
    return installed if (installed / "train.yaml").is_file() else package.parent / "configs"


def preset(group: str, name: str, values: Mapping[str, Any]) -> None:
    """Make an option of a group known, as a file in configs/ would; for plugins.

    Args:
        group: for instance ``policy``, whose option sets keys of that section, or ``experiment``, which sets
            any.
        values: nested settings. Under ``defaults`` stand options of other groups, as in a file.
    """
    _store(group, name, values, "_global_" if group == "experiment" else group.replace("/", "."))


def groups() -> dict[str, list[str]]:
    """Config groups and the options of each: files, registered classes and what plugins added."""
    folder = config_folder()
    found = {
        path.name: {file.stem for file in path.glob("*.yaml")}
        for path in folder.iterdir()
        if path.is_dir() and any(path.glob("*.yaml"))
    }
    for one in registry.ALL:
        found.setdefault(one.group, set()).update(one.classes())
    found.setdefault("env", set()).update(gipo_envs.families())
    for group, name in _presets:
        found.setdefault(group, set()).add(name)
    return {group: sorted(options) for group, options in sorted(found.items())}


_presets: set[tuple[str, str]] = set()


def _store(group: str | None, name: str, node: Mapping[str, Any], package: str) -> None:
    ConfigStore.instance().store(group=group, name=name, node=OmegaConf.create(dict(node)), package=package)
    if group is not None:
        _presets.add((group, name))


def _fill_store() -> None:
    """Put the defaults of every settings class into Hydra's store; cheap enough to do before each
    composition."""
    _store_defaults(tuple((one.section, *one.classes()) for one in registry.ALL), tuple(gipo_envs.families()))


@cache
def _store_defaults(classes: Any, families: tuple[str, ...]) -> None:
    """Args: what is known by now, so that the work is done again only when a plugin has added something."""
    for name, root in ROOTS.items():
        values: dict[str, Any] = {"env": registry.defaults(EnvironmentSettings)}
        for field in dataclasses.fields(root):
            if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING:
                values[field.name] = registry.defaults(root)[field.name]
        _store(None, f"{name}_defaults", values, "_global_")
    # A file of the same name is an option made by hand; Hydra would take the node for its schema.
    for family in families:
        if not (config_folder() / "env" / f"{family}.yaml").is_file():
            _store("env", family, {"family": family}, "env")
    for one in registry.ALL:
        for name, cls in one.classes().items():
            if not (config_folder() / one.group / f"{name}.yaml").is_file():
                _store_class(one, name, cls)


def _store_class(one: registry.Registry[Any], name: str, cls: type[Any]) -> None:
    values = registry.defaults(cls)
    elsewhere: Mapping[str, Any] = getattr(cls, "sets", {})
    inner = [
        {f"/{other.group}": values.pop(other.section.rpartition(".")[2])["name"]}
        for other in registry.ALL
        if other.section.rpartition(".")[0] == one.section and other.section.rpartition(".")[2] in values
    ]
    if not elsewhere:
        _store(one.group, name, ({"defaults": [*inner, "_self_"]} if inner else {}) | values, one.section)
        return
    node = OmegaConf.create({one.section: values})
    for key, value in elsewhere.items():
        OmegaConf.update(node, key, value, force_add=True)
    whole: Any = OmegaConf.to_container(node)
    _store(one.group, name, ({"defaults": [*inner, "_self_"]} if inner else {}) | whole, "_global_")


def compose_yaml(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose ``configs/<name>.yaml`` with overrides, without checking types.

    Raises:
        UserError: an override that is not ``key=value``, an unknown key or option of a group.
    """
    named = plugins.load(plugins.named_in(overrides))
    _fill_store()
    overrides = [repair(text) for text in overrides]
    for text in overrides:
        if not re.match(r"^[~+]{0,2}[\w./@]+(=|$)", text) or ("=" not in text and not text.startswith("~")):
            raise UserError(f"{text!r} is not an override: write key=value, for instance seed=1 (see --help)")
    with initialize_config_dir(str(config_folder().resolve()), version_base="1.3"):
        available = groups()
        for text in overrides:
            key, _, value = text.lstrip("+~").partition("=")
            if key in available and value and value not in available[key]:
                raise UserError(f"{key}={value}: there is no such {key}; {nearest(value, available[key])}")
        try:
            values = compose(name, list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explain(error, name, overrides)) from error
    if named and "plugins" in values:
        values.plugins = list(named)
    return values


PATH_KEYS = {"run_dir", "resume", "init_from", "env.assets", "checkpoint", "policy.checkpoint",
             "policy.base_checkpoint", "demonstrations.path", "credit.scorer.demonstrations"}  # fmt: skip


def repair(text: str) -> str:
    """Rewrite what Hydra's grammar would reject but a user writes naturally: paths, and
    ``credit.scorer=NAME``."""
    key, separator, value = text.partition("=")
    plain = key.lstrip("+")
    if not separator or not value:
        return text
    if plain in PATH_KEYS:
        quoted = value[0] in "'\"" or value == "null"
        return text if quoted else f"{key}='{value}'"
    if plain == plugins.KEY:
        return f"{key}=[{','.join(plugins.named_in([text]))}]"
    if any(plain == one.section and one.section != one.group for one in registry.ALL):
        return f"{key.replace('.', '/')}={value}"
    return text


def _explain(error: Exception, name: str, overrides: Sequence[str]) -> str:
    """One line for an error of Hydra's, with the nearest keys where a key is unknown."""
    available = groups()
    # Which settings exist depends on the options chosen: PPO has no sigma.
    choices = {text.partition("=")[0]: text for text in overrides if text.partition("=")[0] in available}
    plain = compose(name, list(choices.values()))
    known = sorted(known_keys(plain))
    for text in overrides:
        key = text.lstrip("+~").partition("=")[0]
        if key in available or text.startswith("+"):
            continue
        if OmegaConf.select(plain, key, default=MISSING) is MISSING and key not in known:
            choice = choices.get(key.partition(".")[0])
            of = f" with {choice}" if choice else ""
            return f"unknown setting {key!r}{of}; {nearest_key(key, known)}"
    return " ".join(str(error).split())


MISSING = object()
"""Stands for a key that does not exist (None is a value)."""


def known_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every key below a mapping, as a dotted path."""
    for key in map(str, config):
        path = f"{prefix}{key}"
        yield path
        if OmegaConf.is_missing(config, key):
            continue
        value = config[key]
        if isinstance(value, DictConfig):
            yield from known_keys(value, f"{path}.")


def nearest_key(key: str, known: Sequence[str]) -> str:
    """The nearest setting by whole path, else by last part."""
    if difflib.get_close_matches(key, known, n=1, cutoff=0.6):
        return nearest(key, known)
    last = key.rpartition(".")[2]
    tails = {path.rpartition(".")[2]: path for path in known}
    matches = difflib.get_close_matches(last, list(tails), n=3, cutoff=0.6)
    if matches:
        return "nearest: " + ", ".join(tails[match] for match in matches)
    return "top level: " + ", ".join(path for path in known if "." not in path)
