"""What LIBERO's tests share: the extra and the assets, or a reason to skip."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gipo_envs import CameraSettings, Environment, EnvironmentSettings, UserError, make
from gipo_envs.libero import assets, installation
from tests.conftest import MUST_HAVE_LIBERO

MakeLibero = Callable[..., Environment]


def _or_skip(check: Callable[[], Any]) -> Any:
    """What ``check`` returns. If it complains: skip on a user's machine, fail in continuous integration."""
    try:
        return check()
    except UserError as error:
        if MUST_HAVE_LIBERO:
            pytest.fail(f"continuous integration must run LIBERO's tests: {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def libero_installed() -> Path:
    """The folder of hf-libero's package."""
    folder: Path = _or_skip(installation.package_folder)
    return folder


@pytest.fixture(scope="session")
def libero_assets(libero_installed: Path) -> Path:
    """The folder of assets; in CI the one that LIBERO_ASSETS names."""

    def check() -> Path:
        if not os.environ.get("LIBERO_ASSETS"):  # tests download nothing
            raise UserError("LIBERO_ASSETS is not set")
        return assets.find(None)

    folder: Path = _or_skip(check)
    return folder


@pytest.fixture
def make_libero(libero_assets: Path) -> Iterator[MakeLibero]:
    """Makes environments, by default with small and quickly drawn images, and closes them."""
    made: list[Environment] = []

    def construct(
        family: str = "libero_spatial",
        task: Any = 0,
        observations: tuple[str, ...] = ("state", "proprio"),
        camera: CameraSettings | None = None,
        **settings: Any,
    ) -> Environment:
        camera = camera or CameraSettings(names=("agentview", "wrist"), height=48, width=48)
        settings = {"reward": "sparse", **settings}
        made.append(
            make(
                EnvironmentSettings(
                    family=family, task=task, observations=observations, camera=camera, **settings
                )
            )
        )
        return made[-1]

    yield construct
    for environment in made:
        environment.close()
