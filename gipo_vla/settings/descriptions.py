"""What each setting means: for ``--help KEY`` and for docs/settings.md.

Everything is read off the settings classes: the string below a field, its type, its default, its choices.
``python -m gipo_vla.settings.descriptions`` prints the page.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from gipo_envs.errors import UserError, nearest
from gipo_vla.settings import registry
from gipo_vla.settings.cloning import SftSettings
from gipo_vla.settings.schema import TrainingSettings

ROOTS: dict[str, type[Any]] = {"train": TrainingSettings, "sft": SftSettings}


@dataclass(frozen=True)
class Description:
    """One setting."""

    key: str
    """Dotted."""
    type: str
    """In words, with bounds: ``whole number above 0``."""
    default: str
    """As it is written on a command line; ``required`` where there is none."""
    meaning: str
    """In one paragraph; empty where the class says nothing."""
    option: str = ""
    """The option that has the setting, for instance ``objective=gipo``; empty for settings of every run."""


def describe(root: str) -> list[Description]:
    """Every setting of ``train`` or ``sft``, those of all options included, in the order of the classes.

    Where a cloning run's class says nothing, the setting means what it means in training.
    """
    found = list(_of_class(ROOTS[root], "", ""))
    if root == "train":
        return found
    meanings = {one.key: one.meaning for one in describe("train")}
    return [replace(one, meaning=one.meaning or meanings.get(one.key, "")) for one in found]


def _of_class(cls: Any, prefix: str, option: str, given: Any = None) -> Iterator[Description]:
    """Args: given: plain values that take the place of the class's own defaults."""
    hints, meanings = get_type_hints(cls, include_extras=True), field_strings(cls)
    defaults = given or registry.defaults(cls)
    for field in dataclasses.fields(cls):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        section = next((one for one in registry.ALL if one.section == key), None)
        if section is not None:
            for name, own in section.classes().items():
                yield from _of_class(own, f"{key}.", f"{section.group}={name}")
        elif dataclasses.is_dataclass(hint):
            own_defaults = defaults[field.name]
            own_defaults = own_defaults if isinstance(own_defaults, dict) else None
            yield from _of_class(hint, f"{key}.", option, own_defaults)
        elif not (field.name == "name" and option):
            default = defaults[field.name]
            yield Description(
                key,
                _in_words(hint),
                "required" if default == registry.MISSING_VALUE else written(default),
                meanings.get(field.name, "").replace("None:", "null:").replace("``", "`"),
                option,
            )


def written(value: Any) -> str:
    """A value as a command line has it: ``null``, ``true``, ``[a,b]``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(own)}" for key, own in value.items()) + "}"
    if isinstance(value, str) and (not value or re.search(r"\s", value)):
        return repr(value)
    return str(value)


def _in_words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _in_words(arguments[0]) + _bounds(hint)
    if origin is Literal:
        return " or ".join(map(written, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(one) for one in arguments)
    if origin is tuple:
        return f"list of {_in_words(arguments[0])}"
    plain = {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return plain.get(hint, getattr(hint, "__name__", str(hint)))


def _bounds(hint: Any) -> str:
    words = []
    for one in hint.__metadata__:
        for bound in getattr(one, "metadata", [one]):
            for kind, name in ((Gt, "above"), (Ge, "at least"), (Lt, "below"), (Le, "at most")):
                if isinstance(bound, kind):
                    words.append(f" {name} {getattr(bound, kind.__name__.lower())}")
    return " and".join(words)


@functools.cache
def field_strings(cls: Any) -> dict[str, str]:
    """The string below each field of a class, in one paragraph, those of its bases included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(cast(Any, base)))).body[0]
        except (OSError, TypeError):  # made without a file
            continue
        assert isinstance(tree, ast.ClassDef)
        for statement, following in zip(tree.body, tree.body[1:]):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                value = following.value if isinstance(following, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[statement.target.id] = " ".join(value.value.split())
    return found


# ---------------------------------------------------------------------------------------------------- help


def help_on(key: str, root: str) -> str:
    """What ``--help KEY`` prints: a setting with its meaning, type and default; of a section, every setting.

    Raises:
        UserError: there is no such setting.
    """
    every = describe(root)
    found = [one for one in every if one.key == key or one.key.startswith(f"{key}.")]
    section = next((one for one in registry.ALL if key in (one.section, one.group)), None)
    if section is not None:
        found = [one for one in every if one.key.startswith(f"{section.section}.")]
    if not found and section is None:
        # By its last part alone, as people remember it.
        found = [one for one in every if one.key.rpartition(".")[2] == key]
    if not found and section is None:
        raise UserError(f"there is no setting {key!r}; {nearest(key, {one.key for one in every})}")
    lines = []
    if section is not None:
        lines += [f"{section.group}=OPTION chooses the {section.kind}:", ""]
        for name, cls in section.classes().items():
            lines.append(f"  {name:<18}{first_sentence(cls)}")
        lines.append("")
    for one in found:
        lines.append(f"{one.key}={one.default}" + (f"   ({one.option})" if one.option else ""))
        lines.append(f"    {one.type}")
        lines += textwrap.wrap(one.meaning, 96, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def first_sentence(cls: type[Any]) -> str:
    """What a settings class says it is."""
    text = " ".join((cls.__doc__ or "").split())
    return text.partition(". ")[0].rstrip(".")


# ---------------------------------------------------------------------------------------------------- page


def page() -> str:
    """The content of docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Every setting of `python -m gipo_vla.train` and `python -m gipo_vla.sft` with its default,",
        "made from the settings classes by `python -m gipo_vla.settings.descriptions`. `--help KEY` shows",
        "the same for one key or section, options that plugins add included. A list is `[a,b]`, nothing",
        "is `null`.",
    ]
    training = describe("train")
    shown = {(one.key, one.option) for one in training}
    only_sft = [one for one in describe("sft") if (one.key, one.option) not in shown]
    for title, settings in (("Training", training), ("Cloning, where it differs", only_sft)):
        lines += ["", f"## {title}"]
        heading: tuple[str, str] | None = None
        for one in settings:
            section = one.key.rpartition(".")[0].partition(".")[0] or "run"
            if one.option:
                section = one.option
            if (title, section) != heading:
                heading = (title, section)
                lines += ["", f"### {_title(section)}", ""]
                if one.option:
                    group, _, name = one.option.partition("=")
                    cls = next(r for r in registry.ALL if r.group == group).classes()[name]
                    lines += [f"{first_sentence(cls)}.", ""]
                lines += ["| setting | default | type | meaning |", "|---|---|---|---|"]
            cells = (f"`{one.key}`", f"`{one.default}`", one.type, one.meaning)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _title(section: str) -> str:
    return f"`{section}`" if "=" in section else section


if __name__ == "__main__":
    print(page(), end="")
