"""A device that is not there: tensors with a shape, a dtype and a device, and no numbers.

Code for a GPU runs on it from the first forward to the optimizer's step, on any machine and in seconds. Two
tensors of different devices in one operation are an error there, as on a GPU; ``HostWaits`` counts where the
host would wait for the device, and ``gipo_vla.benchmarks.cost`` counts what kernels would do.

torch's fake tensors have one gap: autograd asks the library of a device to be present, so the device cannot
be called cuda on a machine without CUDA. It is torch's backend for devices of others, called gpu.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from gipo_vla.learner.optimizer import GroupClippedAdamW

aten = torch.ops.aten
KIND = "gpu"


@contextmanager
def fake_device() -> Iterator[torch.device]:
    """Every tensor that is made within is fake; the fake device is what it yields."""
    if not hasattr(torch, KIND):
        _setup_privateuseone_for_python_backend(KIND)
        # torch asks every device that a process knows for what autocast takes there, in checkpoints too.
        getattr(torch, KIND).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    with (
        mock.patch.object(nn.Module, "_apply", _apply),
        # Numbers from Python start on the CPU and are copied, as they are to a GPU; nothing is really copied.
        mock.patch.object(FakeTensorMode, "avoid_device_init", True),
        # A twin's tensors live in the mode of the original's.
        mock.patch.object(FakeTensorMode, "__deepcopy__", lambda self, memo: self, create=True),
        # A backward pass in this thread: a device's own would ask for its library.
        torch.autograd.set_multithreading_enabled(False),
        FakeTensorMode(),
    ):
        yield torch.device(KIND, 0)


def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """``nn.Module._apply`` that makes new parameters: torch swaps a fake one's insides, which weak references
    to it do not allow."""
    for child in self.children() if recurse else ():
        child._apply(fn)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                self._parameters[name] = nn.Parameter(fn(parameter), parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


class Engine:
    """What the learner sees of DeepSpeed's engine, which wants a real device: backward passes and, on the
    last one of an update, one look at whether the gradient is finite and the optimizer's step."""

    def __init__(self, policy: nn.Module, optimizer: GroupClippedAdamW, micro_batches: int) -> None:
        self.policy, self.optimizer, self.micro_batches = policy, optimizer, micro_batches
        self.skipped_steps = self.steps = 0
        optimizer.create_state()

    def __call__(self, *inputs: Any) -> Any:
        return self.policy(*inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.steps += 1
        if self.steps % self.micro_batches == 0:
            norms = [p.grad.norm() for p in self.policy.parameters() if p.grad is not None]
            assert bool(torch.stack(norms).isfinite().all())
            self.optimizer.step()
            self.optimizer.zero_grad()

    def destroy(self) -> None:
        """There are no hooks to take away."""


class HostWaits(TorchDispatchMode):
    """Counts the operations at which the host would wait for the device, by kind and place in the code.

    Each gets a harmless answer (1, or as many rows as the mask has entries), so that the code goes on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return self.places.total()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(tensor.device.type == KIND for tensor in tensors)
        if func is aten._local_scalar_dense.default:
            if on_device:
                self._note("the value of a tensor")
            return 1.0 if args[0].is_floating_point() else args[0].dtype == torch.bool or 1
        if func in (aten.equal.default, aten.is_nonzero.default):
            self._note(str(func))
            return True
        if func in (aten.nonzero.default, aten.masked_select.default, aten._unique2.default):
            self._note(str(func))
            raise RuntimeError(f"{func} has an output whose size only the device knows")
        masks = [] if func.overloadpacket not in _INDEXING else [i for i in args[1] if _is_mask(i)]
        if masks:
            self._note("a boolean mask as an index")
            if func is not aten.index.Tensor:
                return args[0]
            return args[0].new_empty((masks[0].numel(), *args[0].shape[masks[0].dim() :]))
        if func is aten._to_copy.default and kwargs.get("device") is not None:
            source, target = args[0].device.type, torch.device(kwargs["device"]).type
            if source == KIND != target:
                self._note("a copy to the host")
            elif target == KIND != source and not kwargs.get("non_blocking"):
                self._note("a copy to the device that blocks")
        return func(*args, **kwargs)

    def _note(self, kind: str) -> None:
        package = str(Path(__file__).parents[1])
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(package)]
        places = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if f.filename != __file__]
        self.places[f"{kind} at {places[-1] if places else 'another package'}"] += 1


_INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
