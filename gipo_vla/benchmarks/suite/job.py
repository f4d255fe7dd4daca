"""What the process of a stage is given, and how it tells what it finds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gipo_vla.benchmarks.suite.records import Records
from gipo_vla.settings.schema import TrainingSettings


@dataclass
class Job:
    """A stage under way."""

    settings: TrainingSettings
    records: Records
    parts: tuple[str, ...]
    """To measure, of those that the stage has."""
    ends: float
    """On the monotonic clock, which all processes of a machine share: then this one is killed."""
    _began: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        return self.records.path.parent

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def tell(self, part: str, figures: dict[str, Any], key: str | int | None = None) -> None:
        """Write figures down, if anybody asked for the part.

        Args:
            key: where a part has several lines, which of them.
        """
        if part in self.parts:
            self.records.add(part, key=key, figures=figures)

    def close(self, part: str) -> None:
        """The part has told everything."""
        now = time.monotonic()
        seconds, self._began = now - self._began, now
        if part in self.parts:
            self.records.add(part, outcome="measured", reason="", seconds=round(seconds, 1))
