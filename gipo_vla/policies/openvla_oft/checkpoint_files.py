"""The files of a published checkpoint folder, opened and checked; nothing here knows the network.

    model-00001-of-0000N.safetensors + model.safetensors.index.json, or model.safetensors
    config.json                   sizes of the Llama; norm_stats
    dataset_statistics.json       replaces norm_stats
    tokenizer.json
    proprio_projector--STEP_checkpoint.pt, action_head--STEP_checkpoint.pt
    lora_adapter/                 adapter_config.json, adapter_model.safetensors

``.pt`` files are read with ``weights_only=True``: nothing in a checkpoint is executed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gipo_envs.errors import UserError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
ADAPTER_FOLDER = "lora_adapter"
DOWNLOAD_PATTERNS = ["*.json", "*.safetensors", "*_checkpoint.pt", "tokenizer*", f"{ADAPTER_FOLDER}/*"]


def resolve_folder(name: str, setting: str = "policy.checkpoint") -> Path:
    """The local folder of a path or a Hugging Face id (downloaded if it is not in the cache).

    Raises:
        UserError: neither a folder nor an id that can be fetched.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{setting} is {name!r}, a file: name the folder of the checkpoint")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"{setting} is {name!r}: there is no such folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=DOWNLOAD_PATTERNS))
    except Exception as error:  # network, credentials and unknown ids have many types
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{setting} is {name!r}: there is no such folder, and fetching it from Hugging Face failed "
            f"({reason})"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint.

    Raises:
        UserError: missing, or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: a checkpoint folder needs it; download the whole folder"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, expected an object: download it again")
    return content


@dataclass
class TensorFiles:
    """The tensors of one or more safetensors files, by name; read one at a time."""

    folder: Path
    files: dict[str, Path] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _handles: dict[tuple[Path, str], Any] = field(default_factory=dict, repr=False)

    def add(self, path: Path) -> None:
        """Read the header of a file.

        Raises:
            UserError: missing, truncated or damaged.
        """
        handle = self._open(path, "cpu")
        for name in handle.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
            self.files[name] = path
            self.shapes[name] = tuple(handle.get_slice(name).get_shape())

    def read(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        return self._open(self.files[name], str(device)).get_tensor(name)

    def _open(self, path: Path, device: str) -> Any:
        if (path, device) not in self._handles:
            if not path.is_file():
                raise UserError(f"{path} is missing: download the checkpoint again, with every shard")
            try:
                handle = safe_open(str(path), framework="pt", device=device).__enter__()
            except (SafetensorError, OSError, ValueError) as error:
                raise UserError(
                    f"{path} is truncated or damaged ({path.stat().st_size:,} bytes; {error}): "
                    "download this shard again"
                ) from error
            self._handles[path, device] = handle
        return self._handles[path, device]

    def close(self) -> None:
        """Let go of the mapped files."""
        self._handles.clear()


def has_weights(folder: Path) -> bool:
    return (folder / INDEX_FILE).is_file() or (folder / SINGLE_FILE).is_file()


def open_weights(folder: Path) -> TensorFiles:
    """The merged weights of a checkpoint folder.

    Raises:
        UserError: there are none, or a shard is missing, truncated or lacks tensors that the index names.
    """
    tensors = TensorFiles(folder)
    if (folder / INDEX_FILE).is_file():
        index = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(index, dict):
            raise UserError(f"{folder / INDEX_FILE} has no weight_map: download it again")
        for file in sorted(set(index.values())):
            tensors.add(folder / file)
        lost = sorted(name for name in index if name not in tensors.files)
        if lost:
            raise UserError(
                f"{folder / index[lost[0]]} lacks {len(lost)} tensors that the index names "
                f"({lost[0]}, ...): download this shard again"
            )
    elif (folder / SINGLE_FILE).is_file():
        tensors.add(folder / SINGLE_FILE)
    else:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise UserError(
            f"{folder} has no {INDEX_FILE} or {SINGLE_FILE} (it holds {found}): name a folder in the "
            "published layout"
        )
    return tensors


def component_file(folder: Path, component: str) -> Path | None:
    """``<component>--<step>_checkpoint.pt``: the latest if there are several."""
    found = {
        match[1]: path
        for path in folder.glob(f"{component}--*_checkpoint.pt")
        if (match := re.fullmatch(rf"{component}--(\d+|latest)_checkpoint\.pt", path.name))
    }
    if not found:
        return None
    return found["latest"] if "latest" in found else found[max(found, key=int)]


def read_component(path: Path) -> dict[str, Tensor]:
    """A published state dict, without the ``module.`` that DistributedDataParallel put in front.

    Raises:
        UserError: damaged, or something else than tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and end-of-file errors alike
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is truncated or no state dict ({reason}): download it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds something else than a state dict of tensors: download it again")
    return {name.removeprefix("module."): value for name, value in state.items()}
