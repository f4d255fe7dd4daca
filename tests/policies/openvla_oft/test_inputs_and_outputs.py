"""Tokens, prompts, pixels and settings: what goes into the network and what comes out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gipo_envs.errors import UserError
from gipo_envs.metaworld.tasks import INSTRUCTIONS
from gipo_vla.export import export_policy
from gipo_vla.policies.lora import LoraSettings
from gipo_vla.policies.openvla_oft import Architecture, OpenVlaOftSettings, TowerSettings
from gipo_vla.policies.openvla_oft.network import PixelNormalizer
from gipo_vla.policies.openvla_oft.normalization import CENTRES, EDGES, tokens_of
from gipo_vla.policies.openvla_oft.text import (
    VOCABULARY,
    pad_prompts,
    prompt_ids,
    read_tokenizer,
    tiny_tokenizer,
)
from gipo_vla.policies.value_heads import ValueHeadSettings
from gipo_vla.settings.runs import load
from tests.policies.openvla_oft.reference import realign

CONFIGS = Path(__file__).parents[3] / "configs" / "policy"
PUBLISHED_PROMPT = OpenVlaOftSettings.prompt


def settings_of(name: str) -> OpenVlaOftSettings:
    settings: OpenVlaOftSettings = load("train", ["experiment=point_reach", f"policy={name}"]).policy
    return settings


def test_tokens_follow_the_original_tokenizer() -> None:
    """OpenVLA's own arithmetic on ids, in numpy."""
    actions = np.concatenate([np.linspace(-1.2, 1.2, 4001), np.linspace(-1, 1, 256)])
    edges = np.linspace(-1, 1, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    ids = 32000 - np.digitize(np.clip(actions, -1, 1), edges)
    assert ids.min() == 31744 and ids.max() == 31999
    edges = torch.from_numpy(EDGES)
    np.testing.assert_array_equal(tokens_of(torch.from_numpy(actions), edges).numpy(), ids - 31744)
    decoded = centres[np.clip(32000 - np.arange(31744, 32000) - 1, 0, 254)]
    np.testing.assert_array_equal(CENTRES, decoded)
    assert decoded[0] == decoded[1] and (np.diff(decoded[1:]) < 0).all()


def test_tokens_of_centres_are_themselves() -> None:
    tokens = torch.arange(1, 256)
    assert torch.equal(tokens_of(torch.from_numpy(CENTRES)[1:], torch.from_numpy(EDGES)), tokens)


def test_tiny_tokenizer_knows_the_published_layout(
    fixture_architecture: Architecture, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer(fixture_architecture)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = read_tokenizer(tmp_path)
    ids = prompt_ids(again, PUBLISHED_PROMPT, "Open the DRAWER", fixture_architecture)
    assert ids == prompt_ids(tokenizer, PUBLISHED_PROMPT, "open the drawer", fixture_architecture)
    assert ids[0] == 1 and ids[-1] == 29871 and ids.count(29871) >= 1
    assert max(ids) < 31744


def test_tiny_vocabulary_is_fixed_and_covers_the_tasks(tiny_settings: OpenVlaOftSettings) -> None:
    architecture = tiny_settings.architecture
    tokenizer = tiny_tokenizer(architecture)
    for text in INSTRUCTIONS.values():
        ids = prompt_ids(tokenizer, "{instruction}", text, architecture)
        pieces = [tokenizer.id_to_token(index) for index in ids[1:-1]]
        assert not [piece for piece in pieces if len(piece) == 1 and piece.isalpha()], text
    assert tokenizer.token_to_id("\u2581in") == 353, "words must keep their ids"
    assert len(set(VOCABULARY.split())) == len(VOCABULARY.split())
    unknown = prompt_ids(tokenizer, "{instruction}", "zwiebel", architecture)
    assert len(unknown) > 5 and 0 not in unknown
    with pytest.raises(UserError, match=r"vocabulary is 500"):
        tiny_tokenizer(dataclasses.replace(architecture, vocabulary=500, prompt_end=100))


def test_prompts_of_another_tokenizer_are_refused(
    fixture_architecture: Architecture, tiny_settings: OpenVlaOftSettings
) -> None:
    with pytest.raises(UserError, match="belongs to another model"):
        prompt_ids(tiny_tokenizer(fixture_architecture), "{instruction}", "a b", tiny_settings.architecture)


def test_padding_layout() -> None:
    rows = [[1, 5, 6, 7, 9], [1, 8, 9]]
    ids, mask = pad_prompts(rows, 32000)
    assert ids.tolist() == [[1, 5, 6, 7, 9], [1, 32000, 32000, 8, 9]]
    assert mask is not None and mask.tolist() == [[True] * 5, [True, False, False, True, True]]
    assert pad_prompts(rows[:1], 32000)[1] is None
    right = torch.tensor([[1, 5, 6, 7, 9], [1, 8, 9, 32000, 32000]])
    again, again_mask = realign(right, right != 32000, 32000)
    assert torch.equal(again, ids) and again_mask is not None and torch.equal(again_mask, mask)


def test_pixels_are_normalised_once_for_each_tower() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).repeat(2, 2, 1, 1, 3)
    images[:, 1] = 255 - images[:, 1]
    pixels = PixelNormalizer()(images)
    assert pixels.shape == (2, 12, 16, 16)
    means, stds = (0.485, 0.456, 0.406, 0.5, 0.5, 0.5), (0.229, 0.224, 0.225, 0.5, 0.5, 0.5)
    for camera in range(2):
        for channel in range(6):
            expected = (images[0, camera, ..., channel % 3].float() / 255 - means[channel]) / stds[channel]
            torch.testing.assert_close(pixels[0, 6 * camera + channel], expected)


def test_presets_are_valid_and_change_what_they_say() -> None:
    full = settings_of("openvla_oft_7b")
    assert full == OpenVlaOftSettings(activation_checkpointing=True)
    tiny = settings_of("openvla_oft_tiny")
    assert 56 <= tiny.architecture.image_size <= 112


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: Architecture(image_size=100), ("policy.architecture.image_size is 100", "multiple of 14")),
        (lambda: Architecture(dino=TowerSettings(64, 3, 5, 64)), ("dino.heads is 5", "width 64")),
        (lambda: Architecture(siglip=TowerSettings(64, 1, 4, 64)), ("siglip.depth is 1",)),
        (lambda: Architecture(dino=TowerSettings(64, 3, 4, 100)), ("dino.mlp is 100",)),
        (lambda: Architecture(heads=33), ("policy.architecture.heads is 33",)),
        (lambda: Architecture(key_value_heads=5), ("key_value_heads is 5",)),
        (lambda: Architecture(prompt_end=31800), ("prompt_end is 31800", "31744")),
        (lambda: OpenVlaOftSettings(chunk=0), ("policy.chunk is 0",)),
        (lambda: OpenVlaOftSettings(images=0), ("policy.images is 0",)),
        (lambda: OpenVlaOftSettings(prompt="go"), ("policy.prompt is 'go'", "{instruction}")),
        (lambda: OpenVlaOftSettings(random_weights=True, checkpoint="x"), ("random_weights", "'x'")),
        (lambda: OpenVlaOftSettings(random_weights=True, head="l1"), ("policy.head is l1",)),
        (lambda: LoraSettings(rank=0), ("policy.lora.rank is 0",)),
        (lambda: LoraSettings(alpha=0), ("policy.lora.alpha is 0",)),
        (lambda: LoraSettings(towers=()), ("policy.lora.towers is []",)),
        (lambda: ValueHeadSettings(width=10, heads=3), ("policy.value.width is 10",)),
        (lambda: export_policy(nn.Linear(1, 1), "x"), ("Linear", "policy=openvla_oft_7b")),
    ],
)
def test_settings_are_checked_at_the_border(make: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        make()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
