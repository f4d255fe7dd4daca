"""The sweep's own settings, apart from those of the runs that it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from omegaconf import OmegaConf
from pydantic import Field

from gipo_envs.errors import UserError
from gipo_vla import options
from gipo_vla.reporting.summary import HeldOutScore
from gipo_vla.settings import plugins
from gipo_vla.settings.composition import compose_yaml, repair
from gipo_vla.settings.schema import TrainingSettings

Positive = Annotated[int, Field(gt=0)]

FORBIDDEN = ("run_dir", "resume")
"""Settings of a run that the sweep itself gives to each job."""


@dataclass(frozen=True)
class SweepSettings:
    """What a sweep runs, and how."""

    overrides: tuple[str, ...] = ()
    """Settings of the runs, as on the command line: key=value, or key=value,value for a grid."""
    ready_made: tuple[str, ...] = ()
    """Overrides of the ready-made sweep as written; ``overrides`` has what the command line left of them."""
    arms: tuple[tuple[str, ...], ...] = ()
    """Settings that go together: each arm is a list of overrides, and the grid is made once for each."""
    changes: tuple[str, ...] = ()
    """Overrides that take the place of those with the same key: how a file in configs/sweep/ that builds on
    another one says what differs."""
    sweep: str | None = None
    """Ready-made sweep, a file in configs/sweep/. What the command line gives replaces what stands there."""
    sweep_dir: str | None = None
    """Folder for the run folders of the jobs. Default: sweeps/<experiment>-<what is varied>."""
    jobs: Positive | None = None
    """Jobs side by side. Default: as many as cores and GPUs feed."""
    launch: Literal["process", "torchrun"] = "process"
    """torchrun: each job runs under torchrun."""
    nproc_per_node: Positive | None = None
    """launch=torchrun: ranks of a job."""
    sample: Positive | None = None
    """Draw so many combinations instead of making the grid, and run each with every seed."""
    sample_seed: Annotated[int, Field(ge=0)] = 0
    """sample: the seed of the draws."""
    part: str | None = None
    """One part of the jobs: 2/6 is the second sixth."""
    keep: str | None = None
    """Folder to copy settings, metrics and evaluation of finished jobs to, fit for committing. Jobs whose
    data is there count as finished."""
    keep_rows: Annotated[int, Field(ge=2)] | None = None
    """keep: at most so many lines of each metrics.jsonl, evenly spread. Default: all."""
    score: HeldOutScore | None = None
    """By what the report on the sweep compares its runs. It is chosen before the first job starts, and kept.
    Default: success_once."""
    seconds_per_job: Annotated[float, Field(gt=0)] | None = None
    """How long a job takes, for the estimate, until one has finished."""
    dry_run: bool = False
    """Check, list and estimate; start nothing."""

    def __post_init__(self) -> None:
        if self.nproc_per_node is not None and self.launch != "torchrun":
            raise UserError(f"nproc_per_node={self.nproc_per_node} needs launch=torchrun")
        number, _, of = (self.part or "1/1").partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise UserError(f"part={self.part}: write which of how many, from part=1/4 to part=4/4")

    @property
    def ranks(self) -> int:
        """Processes of one job that train."""
        return (self.nproc_per_node or 1) if self.launch == "torchrun" else 1

    def slice_of(self, jobs: int) -> slice:
        """Return the jobs that ``part`` selects. Parts follow each other: the first one has the first
        seeds."""
        number, of = map(int, (self.part or "1/1").split("/"))
        return slice((number - 1) * jobs // of, number * jobs // of)


_OF_RUNS = ("overrides", "ready_made", "arms", "changes")
OWN_KEYS = tuple(field.name for field in fields(SweepSettings) if field.name not in _OF_RUNS)
"""What the command line may set: all but the overrides."""


def key_of(override: str) -> str:
    """Return ``objective.sigma`` of ``+objective.sigma=0.5``."""
    return override.partition("=")[0].lstrip("+~")


def split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the sweep's own settings as key -> text, and the overrides for its runs.

    Raises:
        UserError: a top-level key that is neither.
    """
    for key in map(key_of, arguments):
        if key in FORBIDDEN:
            raise UserError(
                f"{key} is set by the sweep, for every job its own: choose its place with sweep_dir="
            )
    return options.split(arguments, OWN_KEYS, options.settings_names([TrainingSettings]))


def load(own: Mapping[str, str], overrides: Sequence[str]) -> SweepSettings:
    """Return the settings of a command line, on top of those of the ready-made sweep that it names.

    Raises:
        UserError: whatever is wrong with the sweep's own settings.
    """
    plugins.load(plugins.named_in(overrides))  # before any option that they bring is looked up
    overrides = [repair(text) if key_of(text) == plugins.KEY else text for text in overrides]
    named = [f"sweep={own['sweep']}"] if "sweep" in own else []
    ready_made = cast(dict[str, Any], OmegaConf.to_container(compose_yaml("sweep", named)))
    settings = options.checked({**ready_made, **own}, SweepSettings)
    given = {key_of(text) for text in overrides}
    of_arms = {key_of(text) for arm in settings.arms for text in arm}
    if given & of_arms:
        raise UserError(
            f"{', '.join(sorted(given & of_arms))}: set by the arms of this sweep, whose settings go "
            "together; copy its file in configs/sweep/ and change the arms there"
        )
    written = _replaced(settings.overrides, settings.changes)
    return replace(settings, overrides=_replaced(written, overrides), ready_made=written)


def _replaced(overrides: Sequence[str], by: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides with those in ``by`` in place of the ones with the same key."""
    keys = {key_of(text) for text in by}
    return (*(text for text in overrides if key_of(text) not in keys), *by)


def default_sweep_dir(experiment: str, varied: Sequence[str]) -> Path:
    """Return a folder that depends on what is varied, not on its values: more seeds go to the same folder."""
    return Path("sweeps") / "-".join([experiment, *(key.rpartition(".")[2] for key in varied)])
