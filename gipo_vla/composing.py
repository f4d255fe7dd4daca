"""YAML files and a command line to one mapping: Hydra's compose API, with messages of our own.

Why the compose API instead of ``@hydra.main``: the run folder, the messages and the exit status are ours
(every rank of a torchrun must agree on one run folder, which Hydra's own cannot promise).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gipo_envs.errors import UserError, nearest


def config_folder() -> Path:
    """The folder of YAML files: inside the package when installed from a wheel, else beside it."""
    installed = Path(__file__).parent / "configs"
    return installed if (installed / "train.yaml").is_file() else Path(__file__).parent.parent / "configs"


def groups() -> dict[str, list[str]]:
    """Config groups and the options of each."""
    folder = config_folder()
    return {
        group.name: sorted(file.stem for file in group.glob("*.yaml"))
        for group in sorted(folder.iterdir())
        if group.is_dir() and any(group.glob("*.yaml"))
    }


def compose_yaml(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose ``configs/<name>.yaml`` with overrides, without checking types.

    Raises:
        UserError: an override that is not ``key=value``, an unknown key or option of a group.
    """
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
            return compose(name, list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explain(error, name, overrides)) from error


PATH_KEYS = {"run_dir", "resume", "init_from", "env.assets", "checkpoint", "policy.checkpoint",
             "policy.base_checkpoint", "demonstrations.path"}  # fmt: skip


def repair(text: str) -> str:
    """Quote values that Hydra's grammar would reject but a shell user writes naturally (paths)."""
    key, separator, value = text.partition("=")
    if separator and key.lstrip("+") in PATH_KEYS and value:
        quoted = value[0] in "'\"" or value == "null"
        return text if quoted else f"{key}='{value}'"
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
        value = OmegaConf.select(config, key, throw_on_missing=False)
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
