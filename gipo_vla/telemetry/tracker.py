"""wandb, or nothing, behind the same three calls."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gipo_vla.settings.schema import TelemetrySettings


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
        self, project: str, online: bool, folder: Path, config: Mapping[str, Any], run_id: str | None
    ) -> None:
        import wandb

        self._run = wandb.init(
            project=project,
            name=folder.name,
            dir=str(folder),
            config=dict(config),
            mode="online" if online else "offline",
            id=run_id,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.id: str | None = self._run.id
        """To continue the same run in a later session."""

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        self._run.log({name: value for name, value in metrics.items() if value is not None}, step=step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish()


Tracker = WandbTracker | NoTracker


def start(
    settings: TelemetrySettings, folder: Path, config: Mapping[str, Any], run_id: str | None = None
) -> Tracker:
    """The tracker that the settings ask for; ``auto`` is online where a key is known, else offline."""
    if settings.wandb == "off":
        return NoTracker()
    online = settings.wandb == "online" or (settings.wandb == "auto" and _has_key())
    return WandbTracker(settings.wandb_project, online, folder, config, run_id)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.is_file() and "wandb" in netrc.read_text()
