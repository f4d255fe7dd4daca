"""Instructions to token ids, and the one padding layout that the network reads.

``<s>`` comes first, padding directly behind it, and the prompt ends at the last slot. So the actions are read
from the same slots in every row, and padding (masked, and counted by no position) changes no log-prob.

Published checkpoints bring their tokenizer; small models have a built-in one, which knows whole words and
spells the others. Its vocabulary is fixed, whatever tasks a run has, so that a checkpoint means the same on
any of them. It is a byte-pair model without merges, so that its file is an ordinary ``tokenizer.json``; ids
follow Llama's where the code relies on them (``<s>`` 1, ``</s>`` 2, bytes from 3).

Shape suffixes: B batch, L prompt tokens.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from gipo_envs.errors import UserError
from gipo_vla.policies.openvla_oft.settings import BEGIN_TOKEN, STOP_TOKEN, Architecture

TOKENIZER_FILE = "tokenizer.json"
WORD_BOUNDARY = "\u2581"
FIRST_BYTE_ID = 3

VOCABULARY = """
in what action should the robot take to out a an and at of on off it into from with by up down left
right top bottom front back middle side center next between under over above inside outside around
through pick place put push pull open close turn rotate press slide move reach grasp grab lift lower
insert remove hit kick throw sweep stack assemble disassemble unplug plug lock unlock dial shelf bin
basket box lid drawer door window button handle faucet lever knob stove microwave cabinet rack plate
bowl cup mug bottle wine cream cheese butter milk juice orange tomato sauce alphabet soup salad
dressing bbq ketchup chocolate pudding cookie cookies popcorn ramekin moka pot pots frying pan caddy
book compartment desk table stick stapler peg hole nail hammer screw coffee machine basketball hoop
soccer ball goal puck wall block cube topdown sideways horizontally vertically edge end position
target location object objects gripper arm red green blue yellow white black gray brown first second
both one two them its counterclockwise clockwise safe gate vent bookshelf tray container kitchen
living room study scene that is be for main end-effector pour wipe hang flip cover uncover fold
unfold close-by away toward towards without against near far carry dunk nut other onto degrees
turning closed drive thermos forward net backward straight sliding behind beside upright corner hold
holding release carefully
"""
"""The words of Meta-World's and LIBERO's instructions and of the published prompt. Append only: the place of
a word is its id in every checkpoint trained so far."""


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


def tiny_tokenizer(architecture: Architecture) -> Tokenizer:
    """The built-in tokenizer for a small vocabulary.

    Raises:
        UserError: the vocabulary has no room for it.
    """
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    assert pieces[BEGIN_TOKEN] == "<s>" and pieces[STOP_TOKEN] == "</s>"
    assert pieces[FIRST_BYTE_ID] == "<0x00>"
    pieces += list(string.ascii_lowercase + string.ascii_uppercase + string.digits + string.punctuation)
    pieces += [WORD_BOUNDARY + word for word in VOCABULARY.split()]
    ids = [index for index in range(len(pieces) + 1) if index != architecture.prompt_end]
    if len(pieces) > architecture.first_action_id - 1:
        raise UserError(
            f"policy.architecture.vocabulary is {architecture.vocabulary}, too small for the built-in "
            f"tokenizer: it must be at least {len(pieces) + 1 + 256 + 64}"
        )
    vocabulary = dict(zip(pieces, ids))
    vocabulary[WORD_BOUNDARY] = architecture.prompt_end
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
            ignore_merges=True,  # take a known word whole, spell an unknown one
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Metaspace(WORD_BOUNDARY, prepend_scheme="always", split=True),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BEGIN_TOKEN)]
    )
    return tokenizer
