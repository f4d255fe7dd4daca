"""hf-libero and robosuite, imported without their side effects.

What importing them does by itself, and what is done about it here:

- ``libero.libero`` asks on standard input where data should go, unless a config file exists: one is written
  into the user's cache first;
- robosuite 1.4 appends to a log file in the shared temporary folder: its file handler is taken away;
- robosuite binds itself to an OpenGL backend, overwrites ``MUJOCO_GL``, and refuses to be imported when
  ``MUJOCO_EGL_DEVICE_ID`` is not in ``CUDA_VISIBLE_DEVICES``: nothing here renders through it (see
  ``gipo_envs.rendering``), so it gets a backend that loads and the variables are put back;
- ``libero.libero.benchmark`` imports torch: it is never imported (see ``catalogue``).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gipo_envs import gl
from gipo_envs.errors import UserError

HOW_TO_INSTALL = "run ./scripts/setup.sh libero"

MODEL_FIELDS = ("body_pos", "body_quat", "site_rgba")
"""What resets (poses of fixtures) and steps (a stove's flame) write into MuJoCo's model; a test compares
whole models."""

_PACKAGES = ("libero", "robosuite", "bddl")


@cache
def package_folder() -> Path:
    """The folder of the module ``libero.libero``, found without importing it.

    Raises:
        UserError: LIBERO is not installed.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"LIBERO is not installed ({', '.join(missing)} missing): {HOW_TO_INSTALL}")
    spec = importlib.util.find_spec("libero")
    for root in (spec and spec.submodule_search_locations) or ():
        if (Path(root) / "libero" / "bddl_files").is_dir():
            return Path(root) / "libero"
    raise UserError(f"the installed package libero is not hf-libero: {HOW_TO_INSTALL}")


def cache_folder() -> Path:
    """Where this package keeps files for the user, by version of hf-libero; made if needed.

    Raises:
        UserError: it cannot be written, or hf-libero is not installed.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    try:
        folder = Path(base) / "gipo_vla" / f"libero-{importlib.metadata.version('hf-libero')}"
        folder.mkdir(parents=True, exist_ok=True)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"hf-libero is not installed: {HOW_TO_INSTALL}") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}): set XDG_CACHE_HOME") from error
    return folder


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that other processes see all of it or none; several may write the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)


def make_simulator(definition: Path, assets: Path) -> Any:
    """robosuite's environment of a task as LIBERO's ``ControlEnv`` makes it, but without cameras and with
    soft resets. Its attribute ``compiled_values`` has what ``MODEL_FIELDS`` held before any reset.

    Args:
        definition: the task's BDDL file.
        assets: folder of meshes and textures.
    """
    envs = environments()
    use_assets(assets)
    problem = envs.BDDLUtils.get_problem_info(str(definition))["problem_name"]
    return _remembering(envs.TASK_MAPPING[problem])(
        str(definition),
        robots=["Panda"],
        controller_configs=envs.suite.load_controller_config(default_controller="OSC_POSE"),
        initialization_noise=None,
        use_camera_obs=False,
        has_offscreen_renderer=False,
        hard_reset=False,
        ignore_done=True,  # step limits are ours
    )


def use_assets(folder: Path) -> None:
    """Have LIBERO take its meshes and textures from a folder (it ignores the entry of its config file)."""
    package: Any = importlib.import_module("libero.libero")
    package._assets_path_cache = str(folder)


@cache
def _remembering(problem: Any) -> Any:
    """A subclass that notes the model as it was compiled; a constructor already resets once."""
    # LIBERO's samplers read where a fixture's regions are while the fixture itself is still at the origin.
    # In a soft reset it no longer is: objects "on the cabinet" would begin a metre above it.

    def initialize(self: Any, xml_string: str | None = None) -> None:
        problem._initialize_sim(self, xml_string)
        self.compiled_values = model_values(self.sim.model._model)

    # LIBERO checks that a class has its problem's name.
    return type(problem.__name__, (problem,), {"_initialize_sim": initialize})


def model_values(model: Any) -> tuple[NDArray[Any], ...]:
    """A copy of ``MODEL_FIELDS``."""
    return tuple(getattr(model, field).copy() for field in MODEL_FIELDS)


@cache
def environments() -> Any:
    """The module ``libero.libero.envs.env_wrapper``.

    Raises:
        UserError: LIBERO is not installed, or a library is missing.
    """
    package_folder()
    try:
        with _quiet_import():
            return importlib.import_module("libero.libero.envs.env_wrapper")
    except ImportError as error:
        how = "apt-get install libgl1 libglib2.0-0" if ".so" in str(error) else HOW_TO_INSTALL
        raise UserError(f"LIBERO does not import ({error}): {how}") from error


@contextmanager
def _quiet_import() -> Iterator[None]:
    """The surroundings in which importing LIBERO and robosuite leaves no trace."""
    before = dict(os.environ)
    os.environ["LIBERO_CONFIG_PATH"] = str(_config_folder())
    os.environ.pop("MUJOCO_EGL_DEVICE_ID", None)
    try:
        os.environ["MUJOCO_GL"] = gl.choose().backend
    except UserError:
        os.environ["MUJOCO_GL"] = "glx"  # the one value under which robosuite loads no OpenGL library
    logger = logging.getLogger("robosuite_logs")
    logger.setLevel(logging.ERROR)  # "No private macro file found!" means nothing
    file_handler = logging.FileHandler
    logging.FileHandler = lambda *_: logging.NullHandler()  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        logging.FileHandler = file_handler  # type: ignore[misc]
        # OpenCV, which robosuite imports, sets LD_LIBRARY_PATH besides.
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _config_folder() -> Path:
    """A folder with the config file without which ``libero.libero`` would ask for input."""
    folder, package = cache_folder() / "config", package_folder()
    places = {"benchmark_root": "", "init_states": "init_files", "datasets": "../datasets"}
    places |= {name: name for name in ("bddl_files", "assets")}
    text = json.dumps({name: str(package / place) for name, place in places.items()})  # JSON is YAML
    path = folder / "config.yaml"
    with suppress(OSError):
        if path.read_text() == text:
            return folder
    write_atomically(path, text.encode())
    return folder
