"""One folder of each kind, made when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.strangers.victims import VICTIMS


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``victim("run")``: a folder of ``victims.VICTIMS``, not to be changed."""

    @cache
    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp("victim") / name
        VICTIMS[name].make(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def base(victim: Callable[[str], Path]) -> Path:
    """A finished run of one iteration."""
    return victim("run")
