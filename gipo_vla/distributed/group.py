"""Start DeepSpeed's process group and reduce small things over it.

One code path for one process and for many: without torchrun the group has a single rank. Every function
here but ``rank`` and ``world_size`` is a collective: all ranks must call it, in the same order, so no call
stands behind an ``if`` that ranks could decide differently.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from gipo_envs.errors import LostRankError, UserError
from gipo_vla.distributed.signals import importing

Result = TypeVar("Result")
TIMEOUT_S = 1800.0
"""Seconds that a collective call waits for the other ranks, if nothing else is said."""
_timeout = timedelta(seconds=TIMEOUT_S)
_ALONE = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
"""What torchrun would have set for a single process (which needs no port)."""
TORCHRUN_NAMES = tuple(_ALONE)
"""Variables that make a process take itself for one of torchrun's ranks."""
_set_by_start: list[str] = []


def choose_device(setting: str) -> torch.device:
    """``auto`` takes this rank's GPU where there is one.

    Raises:
        UserError: ``cuda`` without a GPU that torch can use, or ``auto`` with a GPU that torch cannot use: a
            run that was meant for it would take days on the CPU.
    """
    if setting != "cpu" and not torch.cuda.is_available() and machine_shows_gpu():
        if torch.version.cuda is None:
            remedy = "is built without CUDA: GIPO_TORCH=cuda ./scripts/setup.sh"
        else:
            remedy = f"cannot use it: it needs a driver for CUDA {torch.version.cuda}"
        found = f"nvidia-smi finds a GPU, but torch {torch.__version__}"
        raise UserError(f"{found} {remedy}, or set learner.device=cpu")
    if setting == "cuda" and not torch.cuda.is_available():
        raise UserError("learner.device is cuda, but torch finds no GPU: set learner.device=cpu or auto")
    if setting == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def machine_shows_gpu() -> bool:
    """Whether nvidia-smi finds a GPU that ``CUDA_VISIBLE_DEVICES`` does not hide."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.split(",")[0].strip() in ("", "-1"):
        return False
    driver = shutil.which("nvidia-smi")
    if driver is None:
        return False
    listed = subprocess.run([driver, "-L"], capture_output=True, text=True)
    return listed.returncode == 0 and "GPU" in listed.stdout


def start(device: torch.device, timeout_s: float = TIMEOUT_S) -> None:
    """Join the process group (gloo on CPU, NCCL on GPUs). Does nothing the second time."""
    if dist.is_initialized():
        return
    alone, on_cpu = "RANK" not in os.environ, device.type == "cpu"
    if alone:
        # Otherwise DeepSpeed looks for mpi4py.
        os.environ.update(_ALONE)
        _set_by_start.extend(_ALONE)
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    # DeepSpeed calls collectives by names that torch is about to retire; every rank would say so.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    deepspeed = import_deepspeed()
    if on_cpu:
        # DeepSpeed would compile a shared-memory collective for 45 s; gloo's serves.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        # Read when the first tensor is made. Micro-batches differ in their rows: blocks of a fixed size would
        # leave gaps between them.
        if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
            os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
        torch.cuda.set_device(device)
    backend = "gloo" if on_cpu else "nccl"
    global _timeout
    _timeout = timeout = timedelta(seconds=timeout_s)
    store = dist.HashStore() if alone else _store_of_attempt()
    if store is not None:
        own, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, store=store, rank=own, world_size=ranks, timeout=timeout)
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)


def limit_waiting() -> None:
    """Give every group of ranks the timeout of the first, also those that DeepSpeed has made with torch's
    defaults (NCCL's are ten minutes, less than a slow rollout may take)."""
    for own in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(_timeout, own)


def _store_of_attempt() -> dist.Store | None:
    """torchrun's store under a name of this attempt's own; None where every attempt has its own store."""
    # After a restart the store that torchrun shares with its ranks still holds the addresses of those that
    # died, and subgroups wait for them for ever. Across nodes an attempt has no common number: there
    # TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 (our launchers set it) gives every attempt a store of its own.
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    one_node = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    if not (shared and one_node):
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=TIMEOUT_S))
    return dist.PrefixStore(f"gipo_vla-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@contextmanager
def joined(device: torch.device, timeout_s: float = TIMEOUT_S) -> Iterator[None]:
    """``start`` and ``stop`` around a command's work. Raises LostRankError: another rank died, or did not
    answer for ``timeout_s``."""
    start(device, timeout_s)
    try:
        yield
    except BaseException as error:
        # The others may be waiting in a collective call, and so would the end of the group.
        if world_size() == 1:
            stop()
        elif _is_of_the_network(error):
            raise LostRankError(
                f"rank {rank()} lost the others: one of them died, or did not answer for {timeout_s:g} s; "
                "resume the run from its last checkpoint"
            ) from error
        raise
    stop()


def _is_of_the_network(error: BaseException) -> bool:
    # gloo has no class of its own for what goes wrong.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def import_deepspeed() -> Any:
    """Import DeepSpeed without its chatter on stdout, which belongs to tables and JSON."""
    stdout, sys.stdout = sys.stdout, sys.stderr
    try:
        with importing():
            import deepspeed
            import deepspeed.ops
            from deepspeed.utils import logger
    finally:
        sys.stdout = stdout
    logger.setLevel(logging.ERROR)
    return deepspeed


def stop() -> None:
    """Leave the process group, and the environment as ``start`` found it."""
    if dist.is_initialized():
        # DeepSpeed's own, which also forgets the group that it derived from this one.
        import_deepspeed().comm.destroy_process_group()
    # Child processes, and a group started later, would take them for torchrun's.
    while _set_by_start:
        os.environ.pop(_set_by_start.pop(), None)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum in place over ranks, and return it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def greatest_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Take the elementwise maximum in place over ranks, and return it."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def gather_tensors(tensor: torch.Tensor) -> torch.Tensor:
    """Every rank's tensor, of one shape, behind each other along the first dimension."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def smallest(value: int, device: torch.device) -> int:
    """The smallest value that any rank gives."""
    return int(_reduce(value, dist.ReduceOp.MIN, device))


def largest(value: int, device: torch.device) -> int:
    """The largest value that any rank gives; with 0 and 1, whether any rank says so."""
    return int(_reduce(value, dist.ReduceOp.MAX, device))


def _reduce(value: int, operation: Any, device: torch.device) -> int:
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.int64, device=device)
    dist.all_reduce(tensor, op=operation)
    return int(tensor.item())


def from_first(value: Any) -> Any:
    """Rank 0's value, everywhere (small picklable things: a path, a flag)."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_first(function: Callable[[], Result]) -> Result:
    """What a function returns on rank 0, everywhere (see ``from_first``); a UserError is raised everywhere,
    too."""
    outcome: Any = None
    if rank() == 0:
        try:
            outcome = function()
        except UserError as error:
            outcome = error
    outcome = from_first(outcome)
    if isinstance(outcome, UserError):
        raise outcome
    return cast(Result, outcome)


def gather(value: Result) -> list[Result]:
    """Every rank's value, in rank order, everywhere (small picklable things)."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        dist.barrier()
