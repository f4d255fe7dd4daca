"""Two commands on one folder: the second gets one line, the first does not notice."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

GOING = ("iterations=100000", "telemetry.log_every=1000")


@pytest.mark.medium
def test_a_second_training_in_the_folder_of_one_under_way(launch: Callable[..., Any]) -> None:
    first = launch(*GOING)
    first.until_iteration(2)
    again, resumed = launch(*GOING), launch(f"resume={first.folder}")
    for second, told in ((again, "already holds a run"), (resumed, "is being written by another process")):
        second.wait(2)
        (line,) = second.log.strip().splitlines()
        assert line.startswith("error: ") and told in line
    seen = len(first.rows())
    first.until_iteration(seen + 2)
    first.signal(signal.SIGTERM)
    first.wait(0)
    assert [row["iteration"] for row in first.rows()] == list(range(1, len(first.rows()) + 1))
