"""Where a run's demonstrations come from: recorded, converted, or another run's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gipo_envs import EnvironmentSpec
from gipo_vla.distributed import group
from gipo_vla.imitation import demonstrations, lerobot, libero_hdf5
from gipo_vla.imitation.demonstrations import Demonstrations, Episode
from gipo_vla.imitation.recording import Recording
from gipo_vla.imitation.settings import ExpertSettings, LiberoHdf5Settings, RecordedSettings
from gipo_vla.settings.runs import RunSettings
from gipo_vla.telemetry.console import console

FOLDER = "demonstrations"
"""Within a run folder."""


def obtain(settings: RunSettings, spec: EnvironmentSpec, run_folder: Path) -> Demonstrations:
    """A run's demonstrations; rank 0 makes those that the run folder does not hold yet (a collective call).

    Raises:
        UserError: they cannot be had; the same on every rank.
    """
    source = settings.demonstrations
    folder = run_folder / FOLDER
    if isinstance(source, RecordedSettings):  # a recording's folder, by itself or by the run that holds it
        named = Path(source.path)
        folder = named / FOLDER if demonstrations.exists(named / FOLDER) else named
    recorded = isinstance(source, RecordedSettings) or demonstrations.exists(folder)
    group.on_first(lambda: None if recorded else _make(settings, spec, folder))
    return demonstrations.read(folder, spec, source.count)


def _make(settings: RunSettings, spec: EnvironmentSpec, folder: Path) -> None:
    source = settings.demonstrations
    if isinstance(source, ExpertSettings):
        rollout = settings.rollout
        with Recording(
            settings.env, spec, source, settings.seed, rollout.workers, rollout.worker_timeout_s
        ) as recording:
            episodes = _announced(recording.episodes(), source.count * len(spec.tasks))
            demonstrations.write(folder, spec, episodes, source.name, recording.costs)
        return
    reader = libero_hdf5 if isinstance(source, LiberoHdf5Settings) else lerobot
    read = reader.episodes(source, settings.env, spec)
    demonstrations.write(folder, spec, _announced(read), source.name)


def _announced(episodes: Iterable[Episode], total: int | None = None) -> Iterable[Episode]:
    """The same episodes, and a line now and then for whoever waits."""
    number = 0
    for number, episode in enumerate(episodes, start=1):
        yield episode
        if number % 10 == 0 or number == total:
            console.print(f"{number}{f' of {total}' if total else ''} demonstrations")
    if total is None and number % 10:
        console.print(f"{number} demonstrations")
