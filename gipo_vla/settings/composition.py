"""YAML files and a command line to settings: Hydra's compose API, with messages of our own.

Defaults come from the settings classes: every section and every registered class is put into Hydra's store as
a node of plain values, and the files in configs/ hold only what an option or an experiment changes. An option
of a group is a registered class (``objective=ppo``), a family of environments (``env=metaworld``) or a file
(``experiment=point_reach``).

The compose API is used instead of ``@hydra.main`` because every rank of a torchrun has to agree on one run
folder, which Hydra's own cannot promise.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import gipo_envs
from gipo_envs import EnvironmentSettings
from gipo_envs.errors import UserError, nearest
from gipo_vla.settings import plugins, registry
from gipo_vla.settings.cloning import SftSettings
from gipo_vla.settings.schema import TrainingSettings

ROOTS: dict[str, type[Any]] = {"train": TrainingSettings, "sft": SftSettings}
"""What configs/<name>.yaml composes."""


def command_of(settings: object) -> str:
    """The command whose runs have such settings: ``train`` or ``sft``."""
    return next(name for name, kind in ROOTS.items() if isinstance(settings, kind))


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
    found: dict[str, set[str]] = {}
    for path in config_folder().glob("*/*.yaml"):
        found.setdefault(path.parent.name, set()).add(path.stem)
    for one in registry.ALL:
        found.setdefault(one.group, set()).update(one.classes())
    found.setdefault("env", set()).update(gipo_envs.families())
    for group, name in _presets:
        found.setdefault(group, set()).add(name)
    return {group: sorted(options) for group, options in sorted(found.items())}


PROTOCOLS = "eval"
"""The group whose options are files of settings all over a run: how it is evaluated, and in what."""


def protocol(option: str) -> DictConfig:
    """The settings that an option of ``PROTOCOLS`` holds."""
    return cast(DictConfig, OmegaConf.load(config_folder() / PROTOCOLS / f"{option}.yaml"))


def is_group(key: str, option: object) -> bool:
    """Whether a key is a config group. Raises UserError: it is one, and has no such option."""
    options = groups().get(key)
    if options is not None and option and option not in options:
        raise UserError(f"{key}={option}: there is no such {key}; {nearest(str(option), options)}")
    return options is not None


_presets: set[tuple[str, str]] = set()


def _store(group: str | None, name: str, node: Mapping[str, Any], package: str) -> None:
    ConfigStore.instance().store(group=group, name=name, node=OmegaConf.create(dict(node)), package=package)
    if group is not None:
        _presets.add((group, name))


@cache
def _store_defaults(classes: Any, families: tuple[str, ...]) -> None:
    """Put all defaults into Hydra's store; again only when a plugin has added a class or a family."""
    for name, root in ROOTS.items():
        values = registry.defaults(root)
        values = {key: value for key, value in values.items() if value != registry.MISSING_VALUE}
        _store(None, f"{name}_defaults", {"env": registry.defaults(EnvironmentSettings)} | values, "_global_")
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
    inner = [
        {f"/{other.group}": values.pop(key)["name"]}
        for other in registry.ALL
        for section, _, key in [other.section.rpartition(".")]
        if section == one.section and key in values
    ]
    node, package = values, one.section
    if elsewhere := getattr(cls, "sets", {}):
        config = OmegaConf.create({one.section: values})
        for key, value in elsewhere.items():
            OmegaConf.update(config, key, value, force_add=True)
        node, package = cast(dict[str, Any], OmegaConf.to_container(config)), "_global_"
    _store(one.group, name, ({"defaults": [*inner, "_self_"]} if inner else {}) | node, package)


def compose_yaml(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose ``configs/<name>.yaml`` with overrides, without checking types. Raises UserError: an override
    that is not ``key=value``, an unknown key or option of a group."""
    named = plugins.load(plugins.named_in(overrides))
    _store_defaults(tuple((one.section, *one.classes()) for one in registry.ALL), tuple(gipo_envs.families()))
    overrides = [repair(text) for text in overrides]
    with initialize_config_dir(str(config_folder().resolve()), version_base="1.3"):
        for text in overrides:
            key, separator, value = text.lstrip("+~").partition("=")
            if not re.fullmatch(r"[\w./@]+", key) or not (separator or text.startswith("~")):
                raise UserError(
                    f"{text!r} is not an override: write key=value, for instance seed=1 (see --help)"
                )
            is_group(key, value)
        try:
            values = compose(name, list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explain(error, name, overrides)) from error
    _leave_out_what_options_lack(values, overrides)
    if named and "plugins" in values:
        values.plugins = list(named)
    return values


def _leave_out_what_options_lack(values: DictConfig, overrides: Sequence[str]) -> None:
    """Take out settings that an experiment gives for its own option of a group where the command line chose
    another option, which has no such setting: ``credit=group`` with an experiment that sets ``credit.gamma``.
    What the command line gives stays, to be reported."""
    given = {text.lstrip("+~").partition("=")[0] for text in overrides}
    for one in registry.ALL:
        section = OmegaConf.select(values, one.section) if one.group in given else None
        if isinstance(section, DictConfig) and section.get("name") in one.classes():
            known = registry.defaults(one.classes()[section.name])
            with open_dict(section):
                for key in [key for key in map(str, section) if key != "name" and key not in known]:
                    if f"{one.section}.{key}" not in given:
                        del section[key]


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


MISSING = object()
"""Stands for a key that does not exist (None is a value)."""


def _explain(error: Exception, name: str, overrides: Sequence[str]) -> str:
    """One line for an error of Hydra's, with the nearest keys where a key is unknown."""
    available = groups()
    # Which settings exist depends on the options chosen: PPO has no sigma.
    choices = {text.partition("=")[0]: text for text in overrides if text.partition("=")[0] in available}
    known = by_key(compose(name, list(choices.values())))
    for text in overrides:
        key = text.lstrip("+~").partition("=")[0]
        if key not in available and key not in known and not text.startswith("+"):
            return unknown(key, known, choices.get(key.partition(".")[0], ""))
    return " ".join(str(error).split())


def by_key(values: Any, prefix: str = "") -> dict[str, Any]:
    """Everything below a mapping by its dotted key, sections included."""
    found: dict[str, Any] = {}
    plain: Any = OmegaConf.to_container(values) if isinstance(values, DictConfig) else values
    for key, value in plain.items():
        found[f"{prefix}{key}"] = value
        if isinstance(value, dict):
            found |= by_key(value, f"{prefix}{key}.")
    return found


def unknown(key: str, known: Iterable[str], choice: str = "") -> str:
    """What to say of a setting that there is not: with the nearest by whole path, else by last part.

    Args:
        choice: the option under which it does not exist, ``objective=ppo``.
    """
    known = sorted(known)
    tails = {path.rpartition(".")[2]: path for path in known}
    section = key.rpartition(".")[0] + "."
    siblings = [path for path in known if path.startswith(section) and path != f"{section}name"]
    if choice and not difflib.get_close_matches(key, siblings, n=1, cutoff=0.85):
        # Not a slip of the pen, but a setting of another option.
        hint = f"available: {', '.join(siblings)}" if siblings else "it has no settings of its own"
    elif difflib.get_close_matches(key, known, n=1, cutoff=0.6):
        hint = nearest(key, known)
    elif matches := difflib.get_close_matches(key.rpartition(".")[2], list(tails), n=3, cutoff=0.6):
        hint = "nearest: " + ", ".join(tails[match] for match in matches)
    else:
        hint = "top level: " + ", ".join(path for path in known if "." not in path)
    return f"unknown setting {key!r}{f' with {choice}' if choice else ''}; {hint}"
