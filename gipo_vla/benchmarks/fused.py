"""What ``policy.compile`` makes of one block of the Llama: inductor's kernels, counted and not run.

The block is traced on fake tensors, forward and backward, lowered and scheduled by inductor as for the CPU (a
machine without a GPU has no scheduling for one), whose fusion of elementwise work and reductions follows the
same rules. Matrix products and attention stay calls of the libraries and are not counted here. But one thing
that compiling costs is: what was added in place is not any more, and CUDA copies a matrix before a product is
added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gipo_vla.benchmarks.fake_device import _apply
from gipo_vla.benchmarks.roofline import Card
from gipo_vla.policies import lora
from gipo_vla.policies.openvla_oft.llama import ALIGNMENT, fuse
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings

aten = torch.ops.aten
Direction = Literal["forward", "backward"]


@dataclass(frozen=True)
class Fused:
    """Elementwise work of one block in one direction."""

    kernels: int
    bytes: float
    copied: float
    """Bytes of copies before products that are added to a matrix."""

    def seconds(self, card: Card) -> float:
        return max(self.bytes / card.bandwidth, self.kernels * card.launch) + self.copied / card.bandwidth


def count_block(settings: OpenVlaOftSettings, rows: int, tokens: int) -> dict[Direction, Fused]:
    """A block that answers everywhere, in bfloat16, of so many rows with so many tokens each."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table
    from transformers import LlamaConfig, LlamaModel

    architecture, found = settings.architecture, {}

    def counting(direction: Direction) -> Callable[..., Any]:
        def compiler(graph: Any, inputs: Sequence[Any]) -> Any:
            from torch._functorch.aot_autograd import make_boxed_func

            found[direction] = _fused(graph, inputs, direction == "backward")
            return make_boxed_func(graph.forward)

        return compiler

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=architecture.hidden,
        intermediate_size=architecture.intermediate,
        num_hidden_layers=1,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.key_value_heads,
        is_causal=False,
        use_cache=False,
    )
    with mock.patch.object(nn.Module, "_apply", _apply), FakeTensorMode(allow_non_fake_inputs=True):
        model = LlamaModel(config)
        model.bfloat16()
        block = fuse(model).layers[0]
        targets = [name for name, own in block.named_modules() if isinstance(own, nn.Linear)]
        lora.inject(block, targets, settings.lora)
        width = architecture.hidden // architecture.heads
        cosine, sine = (torch.zeros(rows, tokens, width, dtype=torch.bfloat16) for _ in range(2))
        wide = -(-tokens // ALIGNMENT) * ALIGNMENT
        mask = torch.zeros(rows, 1, 1, wide, dtype=torch.bfloat16)[..., :tokens]
        hidden = torch.zeros(rows, tokens, architecture.hidden, dtype=torch.bfloat16, requires_grad=True)

        def answer(hidden: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
            return block.forward(hidden, (cosine, sine), mask)

        backend = aot_autograd(
            fw_compiler=counting("forward"),
            bw_compiler=counting("backward"),
            decompositions=select_decomp_table(),
            partition_fn=min_cut_rematerialization_partition,
        )
        compiled = torch.compile(answer, backend=backend, dynamic=False, fullgraph=True)
        result = compiled(hidden, cosine, sine, mask.expand(-1, 1, tokens, -1))
        result.backward(torch.zeros_like(result))
    return found


def _fused(graph: Any, inputs: Sequence[Any], backward: bool) -> Fused:
    """The kernels that inductor would generate for a graph."""
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.scheduler import NopKernelSchedulerNode
    from torch._inductor.virtualized import V

    fake = torch._guards.detect_fake_mode(inputs)
    lowered = GraphLowering(graph, example_inputs=inputs, is_inference=False, is_backward=backward)
    with V.set_graph_handler(lowered), V.set_fake_mode(fake), V.set_debug_handler(DebugContext()):
        lowered.run(*inputs)
        lowered._update_scheduler()
        nodes = lowered.scheduler.nodes
        own = [n for n in nodes if not n.is_extern() and not isinstance(n, NopKernelSchedulerNode)]
        moved = sum(node.get_read_write_buffers_sizes() for node in own)
    added = [node.meta["val"] for node in graph.graph.nodes if _adds_to_a_matrix(node)]
    return Fused(len(own), moved, 2.0 * sum(own.numel() * own.element_size() for own in added))


def _adds_to_a_matrix(node: Any) -> bool:
    return node.target is aten.addmm.default and node.args[0].meta["val"].dim() > 1
