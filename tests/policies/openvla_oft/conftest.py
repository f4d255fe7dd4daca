"""A checkpoint folder in the published layout, made of the parity fixture (random weights, 1 MB)."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gipo_envs.protocol import ArraySpec, EnvironmentSpec
from gipo_vla.policies.openvla_oft import Architecture, OpenVlaOftSettings, TowerSettings
from gipo_vla.policies.openvla_oft.text import tiny_tokenizer
from tests.learner import vla

FIXTURE = Path(__file__).parents[2] / "fixtures" / "openvla_oft"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def meta() -> dict[str, Any]:
    return json.loads((FIXTURE / "meta.json").read_text())


@pytest.fixture(scope="session")
def io() -> dict[str, Tensor]:
    """Inputs and outputs of the original implementation."""
    return load_file(FIXTURE / "io.safetensors")


@pytest.fixture(scope="session")
def published_weights(meta: dict[str, Any]) -> dict[str, Tensor]:
    """The full state dict in published names."""
    stored = load_file(FIXTURE / "weights_small.safetensors")
    rows = stored.pop("fixture.embed_rows")
    row_ids = stored.pop("fixture.embed_rows_ids")
    head_rows = stored.pop("fixture.lm_head_rows_31744_32064")
    embedding = torch.zeros(meta["shapes"]["language_model.model.embed_tokens.weight"])
    embedding[row_ids] = rows
    head = _seeded_matrix("language_model.lm_head.weight", meta["shapes"]["language_model.lm_head.weight"])
    assert torch.equal(head[31744:], head_rows)
    stored["language_model.model.embed_tokens.weight"] = embedding
    stored["language_model.lm_head.weight"] = head
    return stored


def _seeded_matrix(name: str, shape: list[int]) -> Tensor:
    """A matrix of the fixture by its name, as its generator drew it."""
    generator = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    values = generator.standard_normal(int(np.prod(shape))).astype(np.float32).reshape(shape)
    return torch.from_numpy(np.float32(1.6 / np.sqrt(int(np.prod(shape[1:])))) * values)


@pytest.fixture(scope="session")
def fixture_architecture() -> Architecture:
    return Architecture(
        image_size=56,
        dino=TowerSettings(32, 3, 4, 128),
        siglip=TowerSettings(36, 4, 4, 134),
        hidden=48,
        intermediate=96,
        layers=2,
        heads=4,
        key_value_heads=4,
    )


WriteFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def write_folder(
    published_weights: dict[str, Tensor], meta: dict[str, Any], fixture_architecture: Architecture
) -> WriteFolder:
    """Write the published folder: in two shards, with whatever heads are asked for."""

    def write(
        folder: Path, proprio: bool = True, l1: bool = False, weights: dict[str, Tensor] | None = None
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        weights = published_weights if weights is None else weights
        names = sorted(weights)
        halves = {
            "model-00001-of-00002.safetensors": names[::2],
            "model-00002-of-00002.safetensors": names[1::2],
        }
        for file, part in halves.items():
            save_file({name: weights[name].contiguous() for name in part}, folder / file)
        weight_map = {name: file for file, part in halves.items() for name in part}
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        config = {"text_config": meta["cfg"]["text"], "norm_stats": {"replaced_by_the_statistics_file": {}}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "dataset_statistics.json").write_text(json.dumps(meta["norm_stats"]))
        tiny_tokenizer(fixture_architecture).save(str(folder / "tokenizer.json"))
        if proprio:
            shutil.copy(FIXTURE / "proprio_projector--150000_checkpoint.pt", folder)
        if l1:
            shutil.copy(FIXTURE / "action_head--150000_checkpoint.pt", folder)
        return folder

    return write


@pytest.fixture(scope="session")
def published_folder(write_folder: WriteFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Discrete tokens, with the proprio projector."""
    return write_folder(tmp_path_factory.mktemp("published") / "tokens")


@pytest.fixture(scope="session")
def l1_folder(write_folder: WriteFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the continuous head, as OpenVLA-OFT publishes."""
    return write_folder(tmp_path_factory.mktemp("published") / "l1", l1=True)


def environment_spec(
    image_size: int = 56,
    cameras: int = 1,
    proprio: int | None = None,
    action_size: int = 7,
    instructions: tuple[str, ...] = ("open the drawer", "Push the puck to the goal on the far left"),
) -> EnvironmentSpec:
    observation = {
        "images": ArraySpec((cameras, image_size, image_size, 3), "uint8"),
        "task": ArraySpec((), "int64"),
    }
    if proprio is not None:
        observation["proprio"] = ArraySpec((proprio,), "float32")
    return EnvironmentSpec(
        tasks=tuple(f"task-{index}" for index in range(len(instructions))),
        instructions=instructions,
        observation=observation,
        action_size=action_size,
        step_limit=200,
        action_repeat=1,
        end_on_success=False,
        reward_scale=1.0,
        frames_per_second=20.0,
    )


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., EnvironmentSpec]:
    return environment_spec


@pytest.fixture(scope="session")
def make_observations() -> Callable[..., dict[str, Tensor]]:
    def make(spec: EnvironmentSpec, batch: int, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, *spec.observation["images"].shape)
        observations = {
            "images": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
            "task": torch.randint(0, len(spec.tasks), (batch,), generator=generator),
        }
        if "proprio" in spec.observation:
            size = spec.observation["proprio"].shape[0]
            observations["proprio"] = torch.randn(batch, size, generator=generator)
        return observations

    return make


@pytest.fixture(scope="session")
def tiny_settings() -> OpenVlaOftSettings:
    """The same code at a size that a unit test can afford."""
    return OpenVlaOftSettings(
        architecture=replace(vla.ARCHITECTURE, image_size=56),
        random_weights=True,
        prompt="{instruction}",
        chunk=4,
    )
