"""What a person sees of a run's progress."""

from __future__ import annotations

import pytest

from gipo_vla.telemetry import console
from gipo_vla.telemetry.console import Position, RunProgress


@pytest.mark.parametrize("seconds, left", [(2, "36 s"), (120, "36 min")])
def test_a_line_says_how_long_the_rest_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: int, left: str
) -> None:
    """At the pace of the iterations so far, also where each is longer than rich's own memory, and of a run
    that was resumed."""
    now = 1000.0
    monkeypatch.setattr(console.console, "get_time", lambda: now)
    progress = RunProgress(Position(100, 120, ""), line_every=1)
    for iteration in (101, 102, 120):
        now += seconds
        progress.update(iteration, Position(iteration, 120, f"iteration {iteration}/120"), "status")
    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "iteration 101/120  status", "of one iteration no pace is known"
    assert second == f"iteration 102/120  status  about {left} left"
    assert last == "iteration 120/120  status"
