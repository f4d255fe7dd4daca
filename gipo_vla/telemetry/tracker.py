"""wandb, or nothing, behind the same three calls."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from gipo_vla.settings.schema import TelemetrySettings


class Tracker(Protocol):
    """An experiment tracker."""

    id: str | None
    """To continue the same run in a later session."""

    def log(self, metrics: Mapping[str, Any], step: int) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None: ...


class NoTracker:
    """Drops everything, so that callers need no ifs."""

    id: str | None = None

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        pass

    def finish(self, summary: Mapping[str, Any]) -> None:
        pass


class WandbTracker:
    """A wandb run; without a key it is kept offline in the run folder, for ``wandb sync``."""

    def __init__(
        self,
        settings: TelemetrySettings,
        mode: str,
        folder: Path,
        config: Mapping[str, Any],
        run_id: str | None,
    ) -> None:
        import wandb

        self._run = wandb.init(
            project=settings.wandb_project,
            name=folder.name,
            dir=str(folder),
            config=dict(config),
            mode="online" if mode == "online" else "offline",
            id=run_id,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.id: str | None = self._run.id

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        self._run.log({name: value for name, value in metrics.items() if value is not None}, step=step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish()


def start(
    settings: TelemetrySettings, folder: Path, config: Mapping[str, Any], run_id: str | None = None
) -> Tracker:
    """The tracker that the settings ask for; ``auto`` is online where a key is known, else offline."""
    mode = settings.wandb
    if mode == "auto":
        mode = "online" if _has_key() else "offline"
    if mode == "off":
        return NoTracker()
    return WandbTracker(settings, mode, folder, config, run_id)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.is_file() and "wandb" in netrc.read_text()
