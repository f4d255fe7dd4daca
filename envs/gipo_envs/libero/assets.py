"""Where LIBERO's meshes and textures are: given, found, or downloaded.

In this order: the setting ``env.assets``, the variable ``LIBERO_ASSETS``, a folder ``assets`` inside the
installed package, and hf-libero's own download in ``~/.cache/libero/assets``, made if it is not there.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from gipo_envs.errors import UserError
from gipo_envs.libero import installation

REPOSITORY = "lerobot/libero-assets"
"""Data set on the Hugging Face Hub; hf-libero's ``HF_ASSETS_REPO_ID``."""

_FOLDERS = (
    "articulated_objects",
    "scenes",
    "stable_hope_objects",
    "stable_scanned_objects",
    "textures",
    "turbosquid_objects",
)

_HOW_TO_PROVIDE = (
    "give a folder that has them with env.assets=FOLDER or LIBERO_ASSETS=FOLDER; on a machine with network: "
    f"hf download {REPOSITORY} --repo-type dataset --local-dir FOLDER"
)


def find(setting: str | None, download: bool = True) -> Path:
    """The folder of assets, downloaded if there is none.

    Raises:
        UserError: a folder that was named lacks them, or they cannot (or are not to) be downloaded.
    """
    named = [("env.assets", setting), ("LIBERO_ASSETS", os.environ.get("LIBERO_ASSETS"))]
    for source, value in named:
        if value:
            folder = Path(value).expanduser().resolve()
            if missing := _missing(folder):
                raise UserError(f"{source} is {value}: it has no folder {missing[0]}; {_HOW_TO_PROVIDE}")
            return folder
    packaged = installation.package_folder() / "assets"
    if not _missing(packaged):
        return packaged
    own_download = Path.home() / ".cache" / "libero" / "assets"
    if not download:
        if _missing(own_download):
            raise UserError(f"LIBERO's assets are downloaded when first needed, or {_HOW_TO_PROVIDE}")
        return own_download
    return _downloaded(own_download)


def _missing(folder: Path) -> list[str]:
    return [name for name in _FOLDERS if not (folder / name).is_dir()]


def _downloaded(folder: Path) -> Path:
    """hf-libero's folder, complete.

    Its own function is not called: it passes an argument that huggingface_hub 1.0 dropped, and takes a
    download that was interrupted for a finished one.
    """
    finished = installation.cache_folder() / "assets-downloaded"
    with (installation.cache_folder() / "assets.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # every rank of a run comes here
        if finished.exists() and not _missing(folder):
            return folder
        try:
            from huggingface_hub import snapshot_download

            # Shows its progress on stderr.
            snapshot_download(REPOSITORY, repo_type="dataset", local_dir=folder)
        except Exception as error:
            if not _missing(folder):  # downloaded by hf-libero before, and there is no network now
                return folder
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"LIBERO's assets are missing and cannot be downloaded ({type(error).__name__}: {reason}); "
                f"{_HOW_TO_PROVIDE}"
            ) from error
        finished.touch()
    return folder
