"""How likely is an instruction, given the frames? The question a vision-language model was made for.

The network is read as the language model that it was before it learned to act: causal, without adapters,
without proprioception,

    <s> | patches of every image | tokens of the instruction

Shape suffixes: B batch, C cameras, H height and width, L tokens of the instruction, T all tokens.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor

from gipo_vla.policies.base import token_log_probs
from gipo_vla.policies.lora import without_adapters
from gipo_vla.policies.openvla_oft.network import OpenVlaOftNetwork
from gipo_vla.policies.openvla_oft.settings import BEGIN_TOKEN


def instruction_ids(tokenizer: Tokenizer, instruction: str) -> Tensor:
    """int64 (L,): tokens of the instruction alone, without ``<s>``."""
    ids = tokenizer.encode(instruction.lower()).ids
    return torch.tensor([token for token in ids if token != BEGIN_TOKEN], dtype=torch.int64)


@torch.no_grad()
def mean_log_prob(network: OpenVlaOftNetwork, pixel_values: Tensor, ids: Tensor) -> Tensor:
    """float32 (B,): mean log-prob of an instruction (L,) given images (B, 6C, H, H)."""
    batch, length, device = len(pixel_values), len(ids), ids.device
    text = torch.cat([torch.full((1,), BEGIN_TOKEN, device=device), ids]).expand(batch, -1)
    with without_adapters(network):
        words = network.language_model.embed_tokens(text)
        embeddings = torch.cat([words[:, :1], network.project_images(pixel_values), words[:, 1:]], dim=1)
        total = embeddings.shape[1]
        causal = torch.ones(total, total, dtype=torch.bool, device=device).tril()
        hidden = network.language_model(
            embeddings, torch.arange(total, device=device).expand(batch, -1), causal.expand(1, 1, -1, -1)
        )
        logits = network.action_head(hidden[:, total - length - 1 : total - 1])
    return token_log_probs(logits, text[:, 1:]).mean(dim=1)
