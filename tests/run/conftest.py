"""A small layout."""

from __future__ import annotations

import pytest

from gipo_envs import EnvironmentSettings, make_spec
from gipo_vla.replay.segment import SegmentLayout, layout


@pytest.fixture(scope="module")
def small_layout() -> SegmentLayout:
    """L = 4, K = 2, D = 2."""
    return layout(make_spec(EnvironmentSettings("point_reach", "reach")), 4, 2, 2, 8)
