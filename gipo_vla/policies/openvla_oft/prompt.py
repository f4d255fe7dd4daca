"""Instructions to token ids, and the one padding layout that the network reads.

``<s>`` comes first, padding directly behind it, and the prompt ends at the last slot. So the actions are read
from the same slots in every row, and padding (masked, and counted by no position) changes no log-prob.

Shape suffixes: B batch, L prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from gipo_envs.errors import UserError
from gipo_vla.policies.openvla_oft.settings import BEGIN_TOKEN, Architecture

TOKENIZER_FILE = "tokenizer.json"


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a published checkpoint, from ``tokenizer.json`` alone."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise UserError(f"{folder} has no {TOKENIZER_FILE}: copy it there from openvla/openvla-7b")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exceptions
        raise UserError(f"{path} is no tokenizer file ({error}): download it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def prompt_ids(
    tokenizer: Tokenizer, template: str, instruction: str, architecture: Architecture
) -> list[int]:
    """Ids of the whole prompt for an instruction: ``<s>`` to the lone word boundary that ends it.

    Raises:
        UserError: an id that the network has no embedding for (another model's tokenizer).
    """
    text = template.replace("{instruction}", instruction.lower())
    ids: list[int] = tokenizer.encode(text).ids
    if ids[:1] != [BEGIN_TOKEN]:
        ids = [BEGIN_TOKEN, *ids]
    if ids[-1] != architecture.prompt_end:
        ids.append(architecture.prompt_end)
    if max(ids) >= architecture.first_action_id:
        raise UserError(
            f"the tokenizer makes id {max(ids)} of {instruction!r}, but the model's text ids end at "
            f"{architecture.first_action_id - 1}: the tokenizer belongs to another model"
        )
    return ids


def pad_prompts(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor | None]:
    """Ids int64 (B, L) and mask bool (B, L), None without padding, of prompts of different lengths."""
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, 0], mask[index, 0] = row[0], True
        rest = len(row) - 1
        ids[index, length - rest :] = torch.tensor(row[1:], dtype=torch.int64)
        mask[index, length - rest :] = True
    return ids, None if all(len(row) == length for row in rows) else mask
