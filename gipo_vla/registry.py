"""Things of one kind by name: objectives, credits, scorers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from gipo_envs.errors import UserError, nearest

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries of one kind by name.

    Args:
        kind: what an entry is, for messages.
        setting: the configuration key that chooses one.
    """

    def __init__(self, kind: str, setting: str) -> None:
        self._kind, self._setting = kind, setting
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator: make a function or class known as ``name``."""

        def add(entry: Entry) -> Entry:
            if name in self._entries:
                raise ValueError(f"{self._kind} {name} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            UserError: there is none.
        """
        if name not in self._entries:
            raise UserError(
                f"{self._setting} is {name}: there is no such {self._kind}; {nearest(name, self._entries)}"
            )
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)
