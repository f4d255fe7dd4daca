"""Sources of demonstrations, by the ``name`` of their settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from gipo_vla.settings.registry import demonstrations
from gipo_vla.settings.schema import NonNegative, Positive

register = demonstrations.register
"""Decorator of the settings class of a source of demonstrations."""


@dataclass(frozen=True)
class StateRange:
    """Initial states whose observed state lies within bounds in one dimension."""

    index: NonNegative
    """Into ``Observation["state"]`` (Meta-World: 4, 5 and 6 are where the first object is, in metres)."""
    low: float | None = None
    high: float | None = None


@register
@dataclass(frozen=True)
class ExpertSettings:
    """Record the environment's scripted experts in its simulator."""

    name: Literal["experts"] = "experts"
    count: Positive = 20
    """Successful episodes kept of each task."""
    action_noise: Annotated[float, Field(ge=0)] = 0.2
    """Standard deviation of the noise added to the executed actions (whose range is -1 to 1), so that the
    demonstrations also show how to come back. What is cloned is the expert's own action."""
    initial_states: Positive | None = None
    """Only so many different initial states a task, used in turn. None: a new one for every attempt."""
    state_range: StateRange | None = None
    """Only initial states within these bounds: demonstrations of a part of the task."""
    steps_after_success: NonNegative = 10
    """Actions recorded after the first success."""
    observe_every: Positive = 1
    """Actions between two recorded observations, each of which is an example."""
    max_attempts: Positive = 1000
    """Attempts at one task after which recording is given up."""


@register
@dataclass(frozen=True)
class RecordedSettings:
    """Read what another run of sft recorded."""

    path: str
    """Its run folder, or the demonstrations/ in it."""
    name: Literal["recorded"] = "recorded"
    count: Positive | None = None
    """Episodes taken of each task, the first ones; None: all."""


@register
@dataclass(frozen=True)
class LiberoHdf5Settings:
    """Read LIBERO's published demonstrations: a folder of ``<task>_demo.hdf5``."""

    path: str
    """The folder."""
    name: Literal["libero_hdf5"] = "libero_hdf5"
    count: Positive | None = None
    """Episodes taken of each task; None: all."""
    drop_no_ops: bool = True
    """Leave out actions that move nothing, as the data of the published checkpoints does."""
    rotate_images: bool = False
    """Turn images by 180 degrees to how the simulator renders them. The published files hold them as
    rendered."""


@register
@dataclass(frozen=True)
class LeRobotSettings:
    """Read a LeRobot data set's folder, of format 2 or 3."""

    path: str
    """The folder of the data set."""
    images: tuple[str, ...] = ("observation.images.image", "observation.images.wrist_image")
    """Features to take as the environment's cameras, in their order: one for each of env.camera.names."""
    name: Literal["lerobot"] = "lerobot"
    count: Positive | None = None
    """Episodes taken of each task; None: all."""
    proprio: str | None = "observation.state"
    """Feature with the proprioception; None: the policy sees none."""
    actions: str = "action"
    """Feature with the actions."""
    drop_no_ops: bool = True
    """Leave out actions that move nothing."""
    rotate_images: bool = False
    """Turn images by 180 degrees to how the simulator renders them: true for upright data sets of LIBERO."""
