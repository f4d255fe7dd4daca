"""Settings: their schema, how they are composed, and the registries that plugins add to.

A settings class is a frozen dataclass and the one place of what it declares: its defaults, what each setting
means (the string below a field), what a resume may not change, what it needs of a run. Composition,
validation, ``--help``, the table in docs/settings.md and dispatch all follow from it.

This file imports nothing, because simulator workers load ``gipo_vla.settings.plugins`` and must stay small.
"""
