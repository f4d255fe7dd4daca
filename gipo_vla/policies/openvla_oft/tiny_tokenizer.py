"""A tokenizer for small models that needs no download: whole words where it knows them, else letters.

The vocabulary is fixed, whatever tasks a run has, so that a checkpoint means the same on any of them. It is a
byte-pair model without merges, so that its file is an ordinary ``tokenizer.json``; ids follow Llama's where
the code relies on them (``<s>`` 1, ``</s>`` 2, bytes from 3).
"""

from __future__ import annotations

import string

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from gipo_envs.errors import UserError
from gipo_vla.policies.openvla_oft.settings import BEGIN_TOKEN, STOP_TOKEN, Architecture

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
