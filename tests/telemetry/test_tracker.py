"""wandb is offline without a key, and off when told so."""

from __future__ import annotations

from pathlib import Path

import pytest

from gipo_vla.settings.schema import TelemetrySettings
from gipo_vla.telemetry import tracker


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "absent"))


def test_off_drops_everything(tmp_path: Path) -> None:
    own = tracker.start(TelemetrySettings(wandb="off"), tmp_path, {})
    assert isinstance(own, tracker.NoTracker)
    own.log({"a": 1.0}, 1)
    own.finish({})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.medium
def test_without_a_key_a_run_is_kept_offline(
    tmp_path: Path, no_key: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    own = tracker.start(TelemetrySettings(wandb="auto"), tmp_path, {"seed": 1})
    own.log({"a": 1.0, "absent": None}, 1)
    own.finish({"b": 2.0})
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert own.id is not None
