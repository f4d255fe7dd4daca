"""The sweep's own settings, apart from those of the runs that it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from gipo_envs.errors import UserError, nearest
from gipo_vla import config
from gipo_vla.composing import compose_yaml, groups
from gipo_vla.config import Config

Positive = Annotated[int, Field(gt=0)]

GROUP = "sweep"
"""The config group of ready-made sweeps."""
FORBIDDEN = ("run_dir", "resume")
"""Settings of a run that the sweep itself gives to each job."""


@dataclass(frozen=True)
class SweepSettings:
    """See configs/sweep.yaml for what each is for."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    overrides: tuple[str, ...] = ()
    ready_made: tuple[str, ...] = ()
    """Overrides of the ready-made sweep as written, of which ``overrides`` has what the command line left."""
    arms: tuple[tuple[str, ...], ...] = ()
    sweep_dir: str | None = None
    jobs: Positive | None = None
    launch: Literal["process", "torchrun"] = "process"
    nproc_per_node: Positive | None = None
    sample: Positive | None = None
    sample_seed: Annotated[int, Field(ge=0)] = 0
    part: str | None = None
    keep: str | None = None
    keep_rows: Annotated[int, Field(ge=2)] | None = None
    seconds_per_job: Annotated[float, Field(gt=0)] | None = None
    dry_run: bool = False

    @property
    def ranks(self) -> int:
        """Processes of one job that train."""
        return (self.nproc_per_node or 1) if self.launch == "torchrun" else 1

    def slice_of(self, jobs: int) -> slice:
        """The jobs that ``part`` selects: parts follow each other, so the first part of a grid is its first
        seeds."""
        if self.part is None:
            return slice(0, jobs)
        number, of = (int(text) for text in self.part.split("/"))
        return slice((number - 1) * jobs // of, number * jobs // of)


_OF_THE_RUNS = ("overrides", "ready_made", "arms")
OWN_KEYS = tuple(field.name for field in fields(SweepSettings) if field.name not in _OF_THE_RUNS)
_PATHS = ("sweep_dir", "keep")


def key_of(override: str) -> str:
    """``objective.sigma`` of ``+objective.sigma=0.5``."""
    return override.partition("=")[0].lstrip("+~")


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments for the sweep, and overrides for its runs.

    Raises:
        UserError: a top-level key that is neither.
    """
    own, rest = [], []
    for text in arguments:
        key = key_of(text)
        if key in FORBIDDEN:
            raise UserError(
                f"{key} is set by the sweep, for every job its own: choose its place with sweep_dir="
            )
        if key in (GROUP, *OWN_KEYS):
            own.append(text)
        elif "." not in key and "=" in text and key not in _top_level():
            raise UserError(f"unknown setting {key!r}; {nearest(key, (*OWN_KEYS, GROUP, *_top_level()))}")
        else:
            rest.append(text)
    return own, rest


def _top_level() -> tuple[str, ...]:
    """Top-level keys of a run, groups among them."""
    return (*(field.name for field in fields(Config)), *(name for name in groups() if name != GROUP))


def load(own: Sequence[str], overrides: Sequence[str]) -> SweepSettings:
    """Compose configs/sweep.yaml; the command line's overrides replace those of a ready-made sweep.

    Raises:
        UserError: whatever is wrong with the sweep's own settings.
    """
    values = compose_yaml("sweep", [_quoted(text) for text in own])
    settings = _checked(values)
    given = {key_of(text) for text in overrides}
    of_arms = {key_of(text) for arm in settings.arms for text in arm}
    if given & of_arms:
        raise UserError(
            f"{', '.join(sorted(given & of_arms))}: set by the arms of this sweep, whose settings go "
            "together; copy its file in configs/sweep/ and change the arms there"
        )
    left = [text for text in settings.overrides if key_of(text) not in given]
    return replace(settings, overrides=(*left, *overrides), ready_made=settings.overrides)


def _quoted(text: str) -> str:
    """A path, safe from Hydra's grammar."""
    key, _, value = text.partition("=")
    if key in _PATHS and value and value != "null" and value[0] not in "'\"":
        return f"{key}='{value}'"
    return text


def _checked(values: Any) -> SweepSettings:
    settings = config.typed(values, SweepSettings)
    if settings.nproc_per_node is not None and settings.launch != "torchrun":
        raise UserError(f"nproc_per_node={settings.nproc_per_node} needs launch=torchrun")
    if settings.part is not None:
        _check_part(settings.part)
    return settings


def _check_part(part: str) -> None:
    number, _, of = part.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise UserError(f"part={part}: write which of how many, from part=1/4 to part=4/4")


def default_sweep_dir(experiment: str, varied: Sequence[str]) -> Path:
    """Decided by what is varied, not by its values: more seeds go to the same folder."""
    return Path("sweeps") / "-".join([experiment, *(key.rpartition(".")[2] for key in varied)])
