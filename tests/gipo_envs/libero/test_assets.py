"""Where assets come from, and what is said when they do not."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from gipo_envs import UserError
from gipo_envs.libero import assets, installation

pytestmark = pytest.mark.usefixtures("libero_installed")


def _folder(path: Path) -> Path:
    for name in assets._FOLDERS:
        (path / name).mkdir(parents=True)
    return path


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An empty home, nothing set, no network."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LIBERO_ASSETS", raising=False)

    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("no network\nmore about it")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    return monkeypatch


def test_the_setting_comes_first(tmp_path: Path, bare_machine: pytest.MonkeyPatch) -> None:
    ours, theirs = _folder(tmp_path / "ours"), _folder(tmp_path / "theirs")
    bare_machine.setenv("LIBERO_ASSETS", str(theirs))
    assert assets.find(str(ours)) == ours
    assert assets.find(None) == theirs


@pytest.mark.parametrize("source", ["env.assets", "LIBERO_ASSETS"])
def test_a_folder_without_assets(tmp_path: Path, bare_machine: pytest.MonkeyPatch, source: str) -> None:
    bare_machine.setenv("LIBERO_ASSETS", str(tmp_path))
    with pytest.raises(UserError, match=f"{source} is {tmp_path}: it has no folder articulated_objects"):
        assets.find(str(tmp_path) if source == "env.assets" else None)


def test_without_network(bare_machine: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"cannot be downloaded .*no network.*env.assets=FOLDER") as caught:
        assets.find(None)
    assert "\n" not in str(caught.value)


def test_download(tmp_path: Path, bare_machine: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupted(repository: str, repo_type: str, local_dir: Path) -> None:
        calls.append((repository, repo_type))
        (local_dir / "scenes").mkdir(parents=True)
        raise ConnectionError("lost")

    def complete(repository: str, repo_type: str, local_dir: Path) -> None:
        calls.append((repository, repo_type))
        (local_dir / "scenes").rmdir()
        _folder(local_dir)

    bare_machine.setattr(huggingface_hub, "snapshot_download", interrupted)
    with pytest.raises(UserError, match="lost"):
        assets.find(None)
    bare_machine.setattr(huggingface_hub, "snapshot_download", complete)
    folder = tmp_path / "home" / ".cache" / "libero" / "assets"
    assert assets.find(None) == folder
    assert assets.find(None) == folder
    assert calls == [("lerobot/libero-assets", "dataset")] * 2


def test_what_hf_libero_downloaded_serves_without_network(
    tmp_path: Path, bare_machine: pytest.MonkeyPatch
) -> None:
    folder = _folder(tmp_path / "home" / ".cache" / "libero" / "assets")
    assert assets.find(None) == folder


def test_a_cache_that_cannot_be_made(tmp_path: Path, bare_machine: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    bare_machine.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        installation.cache_folder()
