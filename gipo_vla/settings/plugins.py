"""Plugins: modules of a user's that register objectives, credits, scorers, policies and simulators.

``plugins=[my_module]`` on a command line imports the module in that process and, through the environment
variable ``GIPO_PLUGINS``, in every process that it starts. A run remembers the names of its plugins, but a
folder that is read never makes anything be imported: a command has to name them, too.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterable, Sequence

from gipo_envs.errors import UserError

VARIABLE = "GIPO_PLUGINS"
"""Names of modules, separated by commas."""
KEY = "plugins"
"""The setting."""


def load(names: Iterable[str]) -> tuple[str, ...]:
    """Import modules by their dotted names, together with those of ``GIPO_PLUGINS``; returns all names.
    Raises UserError: a module does not exist, or raises an exception while it is imported."""
    wanted = tuple(dict.fromkeys([*_split(os.environ.get(VARIABLE, "")), *names]))
    for name in wanted:
        try:
            importlib.import_module(name)
        except UserError:
            raise
        except ModuleNotFoundError as error:
            missing = "" if f"{name}.".startswith(f"{error.name}.") else f": it needs {error.name}"
            raise UserError(
                f"plugins names {name}, which cannot be imported{missing}; start the command in the folder "
                "that holds the module, or add that folder to PYTHONPATH"
            ) from error
        except Exception as error:
            raise UserError(f"plugins names {name}, which raises {type(error).__name__}: {error}") from error
    if wanted:
        os.environ[VARIABLE] = ",".join(wanted)  # for the processes that this one starts
    return wanted


def imported() -> bool:
    """Whether this process has imported plugins."""
    return any(name in sys.modules for name in _split(os.environ.get(VARIABLE, "")))


def named_in(arguments: Sequence[str]) -> list[str]:
    """The modules that ``plugins=...`` among a command's arguments names."""
    given = [text.partition("=")[2] for text in arguments if text.lstrip("+").startswith(f"{KEY}=")]
    return _split(given[-1]) if given else []


def require(names: Iterable[str], source: object) -> None:
    """Raise a UserError if the folder ``source`` names plugins that nobody has asked for."""
    missing = [name for name in names if name not in _split(os.environ.get(VARIABLE, ""))]
    if missing:
        listed = ",".join(missing)
        raise UserError(
            f"{source} was made with the plugin {listed}, which is not imported because a folder names it: "
            f"add plugins=[{listed}] to the command, or set {VARIABLE}={listed}"
        )


def _split(text: str) -> list[str]:
    return [name for name in re.split(r"[\s,\[\]'\"]+", text) if name and name != "null"]
