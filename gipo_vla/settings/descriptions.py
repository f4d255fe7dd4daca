"""What each setting means: for ``--help KEY`` and for docs/settings.md.

Everything is read off the settings classes: the string below a field, its type, its default, its choices.
``python -m gipo_vla.settings.descriptions`` prints the page.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_type_hints

from gipo_envs.errors import UserError, nearest
from gipo_vla.settings import registry
from gipo_vla.settings.composition import ROOTS

PLAIN_WORDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
}
BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "exclusiveMaximum": "below",
    "maximum": "at most",
}
"""Words for what stands in a JSON schema."""


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
    """Every setting of ``train`` or ``sft``, those of all options included, in the order of the classes."""
    return list(_of_class(ROOTS[root], "", "", registry.defaults(ROOTS[root])))


def _of_class(cls: Any, prefix: str, option: str, defaults: dict[str, Any]) -> Iterator[Description]:
    hints, schema = get_type_hints(cls), registry.schema(cls)
    for name, default in defaults.items():
        key = f"{prefix}{name}"
        section = next((one for one in registry.ALL if one.section == key), None)
        if section is not None:
            for choice, own in section.classes().items():
                yield from _of_class(own, f"{key}.", f"{section.group}={choice}", registry.defaults(own))
        elif dataclasses.is_dataclass(hints[name]):
            inner = default if isinstance(default, dict) else registry.defaults(hints[name])
            yield from _of_class(hints[name], f"{key}.", option, inner)
        elif not (name == "name" and option):
            yield Description(
                key,
                _in_words(schema[name]),
                "required" if default == registry.MISSING_VALUE else written(default),
                schema[name]["description"].replace("None:", "null:").replace("``", "`"),
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


def _in_words(schema: dict[str, Any]) -> str:
    """A JSON schema's type in words."""
    if "anyOf" in schema:
        return " or ".join(map(_in_words, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " or ".join(map(written, schema.get("enum") or [schema["const"]]))
    if "$ref" in schema:  # a class of settings
        return str(schema["$ref"]).rpartition("/")[2]
    if schema["type"] == "array":
        return f"list of {_in_words(schema.get('items') or schema['prefixItems'][0])}"
    bounds = [f" {word} {schema[name]}" for name, word in BOUNDS.items() if name in schema]
    return PLAIN_WORDS[schema["type"]] + " and".join(bounds)


def help_on(key: str, root: str) -> str:
    """What ``--help KEY`` prints: a setting with its meaning, type and default; of a section, every setting.
    Raises UserError: there is no such setting."""
    every = describe(root)
    lines = []
    section = next((one for one in registry.ALL if key in (one.section, one.group)), None)
    if section is not None:
        key = section.section
        lines = [f"{section.group}=OPTION chooses the {section.kind}:", ""]
        lines += [f"  {name:<18}{first_sentence(cls)}" for name, cls in section.classes().items()] + [""]
    found = [one for one in every if one.key == key or one.key.startswith(f"{key}.")]
    # By its last part alone, as people remember it.
    found = found or [one for one in every if one.key.rpartition(".")[2] == key]
    if not found and section is None:
        raise UserError(f"there is no setting {key!r}; {nearest(key, {one.key for one in every})}")
    for one in found:
        lines.append(f"{one.key}={one.default}" + (f"   ({one.option})" if one.option else ""))
        lines.append(f"    {one.type}")
        lines += textwrap.wrap(one.meaning, 96, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def first_sentence(cls: type[Any]) -> str:
    """What a settings class says it is."""
    text = " ".join((cls.__doc__ or "").split())
    return text.partition(". ")[0].rstrip(".")


INTRODUCTION = """\
# Settings

Every setting of `python -m gipo_vla.train` and `python -m gipo_vla.sft` with its default,
made from the settings classes by `python -m gipo_vla.settings.descriptions`. `--help KEY` shows
the same for one key or section, options that plugins add included. A list is `[a,b]`, nothing
is `null`."""


def page() -> str:
    """The content of docs/settings.md."""
    lines = [INTRODUCTION]
    training = describe("train")
    shown = {(one.key, one.option) for one in training}
    only_sft = [one for one in describe("sft") if (one.key, one.option) not in shown]
    for title, settings in (("Training", training), ("Cloning, where it differs", only_sft)):
        lines += ["", f"## {title}"]
        sections: dict[str, list[Description]] = {}
        for one in settings:
            section = one.option or one.key.rpartition(".")[0].partition(".")[0] or "run"
            sections.setdefault(section, []).append(one)
        for section, own in sections.items():
            lines += ["", f"### `{section}`" if own[0].option else f"### {section}", ""]
            if own[0].option:
                group, _, name = section.partition("=")
                cls = next(r for r in registry.ALL if r.group == group).get(name)
                lines += [f"{first_sentence(cls)}.", ""]
            lines += ["| setting | default | type | meaning |", "|---|---|---|---|"]
            for one in own:
                cells = (f"`{one.key}`", f"`{one.default}`", one.type, one.meaning)
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
