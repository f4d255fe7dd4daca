"""A command's own options, ``key=value`` like the settings of a run, from one dataclass for each command.

The class has a field with a type, a default and a docstring for every option. ``parse`` takes the options out
of the arguments, has pydantic check them, and makes their part of ``--help`` from the class.

Little is imported here, so that ``gipo_vla.doctor`` can say what is missing of an installation.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from gipo_envs.errors import UserError, nearest
from gipo_vla import cli
from gipo_vla.settings import plugins, registry

Options = TypeVar("Options")

WORDS = {"integer": "N", "number": "NUMBER", "boolean": "true|false"}
"""Types in ``--help``, where a type is not text."""


def parse(
    arguments: Sequence[str], kind: type[Options], usage: str, *runs: type
) -> tuple[Options, list[str]] | None:
    """Return the command's options and its other arguments, or None if a flag such as --help was answered.

    Args:
        kind: dataclass of the options.
        usage: what ``--help`` prints above the options.
        runs: settings classes of the runs that other arguments of the form ``key=value`` may override.
            Without any, such an argument is a mistake, unless a file of this name exists.

    Raises:
        UserError: an unknown option, or a value of the wrong type.
    """
    names = list(registry.schema(cast(Any, kind)))
    if "--help" in arguments and (asked := [name for name in names if name in arguments]):
        print(describe(kind, asked))
        return None
    told = f"{usage.strip()}\n\nOptions:\n{describe(kind)}"
    given, rest = split(arguments, names, settings_names(runs) if runs else None)
    if runs:
        overrides = cli.handle_common_flags(rest, "train", told)
        return None if overrides is None else (checked(given, kind), overrides)
    if "--help" in rest:
        print(told)
        return None
    for flag in rest:
        if flag.startswith("--"):
            raise UserError(f"unknown option {flag}; {nearest(flag, ['--help', *names])}")
    return checked(given, kind), rest


def split(
    arguments: Iterable[str], own: Sequence[str], settings: Sequence[str] | None
) -> tuple[dict[str, str], list[str]]:
    """Return the options among the arguments as name -> text, and the other arguments.

    Args:
        own: names of the options.
        settings: top-level keys of a run; None: there is no run to override.

    Raises:
        UserError: an argument ``key=value`` that is neither an option nor an override.
    """
    given, rest = {}, []
    for text in arguments:
        key, separator, value = text.partition("=")
        if key in own and separator:
            given[key] = value
        elif key == plugins.KEY and separator and settings is None:
            plugins.load(plugins.named_in([text]))  # what is read may have been made with them
        else:
            if separator and re.fullmatch(r"[A-Za-z_][\w.]*", key):
                if settings is None and not Path(text).exists():
                    raise UserError(f"unknown option {key!r}; {nearest(key, own)}")
                if settings is not None and "." not in key and key not in settings:
                    raise UserError(f"unknown setting {key!r}; {nearest(key, {*own, *settings})}")
            rest.append(text)
    return given, rest


def settings_names(runs: Iterable[type]) -> list[str]:
    """Return the top-level keys of runs, groups among them."""
    from gipo_vla.settings.composition import groups

    return [*(field.name for run in runs for field in dataclasses.fields(run)), *groups()]


def checked(given: Mapping[str, Any], kind: type[Options]) -> Options:
    """Return the options with their types; ``null`` and nothing at all stand for None. Raises UserError: a
    value of the wrong type."""
    values = {key: None if value in ("", "null") else value for key, value in given.items()}
    return registry.validated(kind, values)


def describe(kind: type, asked: Sequence[str] = ()) -> str:
    """Return a paragraph for each option (or those asked for): what to write, its meaning and its default."""
    paragraphs = []
    for name, field in registry.schema(kind).items():
        if asked and name not in asked:
            continue
        type_ = next(one for one in field.get("anyOf", [field]) if one.get("type") != "null")
        value = "|".join(map(str, type_.get("enum", ()))) or WORDS.get(type_.get("type"), "TEXT")
        head = f"  {name}={'PATH' if type_.get('format') == 'path' else value}"
        meaning = field["description"]
        if field.get("default") is not None:
            meaning += f" Default: {str(field['default']).lower()}."
        head = f"{head:<24}" if len(head) < 24 else f"{head}  "
        paragraphs.append(textwrap.fill(meaning, 110, initial_indent=head, subsequent_indent=" " * 24))
    return "\n".join(paragraphs)
