"""The sizes of what a run collects, which the pipeline and the actor are made to."""

from __future__ import annotations

from dataclasses import dataclass

from gipo_envs import EnvironmentSpec
from gipo_vla.replay.segment import SegmentLayout


@dataclass(frozen=True)
class Collection:
    """Sizes of an iteration's experience."""

    spec: EnvironmentSpec
    """The environment as training's workers make it, with the landmarks that the credit may need."""
    layout: SegmentLayout
    steps: int
    """Decisions of every environment in one iteration, S."""
