"""Action tokens: 256 ids on [-1, 1], as in OpenVLA's ``ActionTokenizer``.

256 bin *edges* span [-1, 1] and have 255 centres between them; an id names a bin counted from the top, so
ascending ids are descending actions, and the two lowest ids name the same centre (encoding never writes the
lowest one except for +1 exactly). The policy's tokens count from the lowest action id: token 0 is id 31744 of
the published vocabulary and the action +0.996, token 255 is id 31999 and the action -0.996.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gipo_vla.policies.openvla_oft.settings import ACTION_IDS

EDGES: NDArray[np.float64] = np.linspace(-1.0, 1.0, ACTION_IDS)
CENTRES: NDArray[np.float64] = (EDGES[:-1] + EDGES[1:]) / 2.0


def centres_of_tokens() -> NDArray[np.float64]:
    """(256,) the normalised action of each token, descending."""
    tokens = np.arange(ACTION_IDS)
    return CENTRES[np.clip(ACTION_IDS - tokens - 1, 0, len(CENTRES) - 1)]


def tokens_of(actions: Tensor, edges: Tensor) -> Tensor:
    """Tokens int64 (...) of normalised actions (...), clipped to [-1, 1]; ``EDGES`` on their device.

    The original digitises with ``numpy.digitize`` (the count of edges that are <= the action, 1..256) and
    subtracts that from the end of the vocabulary.
    """
    bins = torch.bucketize(actions.double().clamp(-1.0, 1.0), edges, right=True)
    return ACTION_IDS - bins
