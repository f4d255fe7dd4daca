"""learner.deterministic.

There is no GPU here: what is set for one is looked at, and what an update would call.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import deterministic as memory
from torch.utils._python_dispatch import TorchDispatchMode

from gipo_envs.errors import UserError
from gipo_vla.assembly import build_policy, environment_spec
from gipo_vla.distributed import group
from gipo_vla.distributed.determinism import deterministic
from gipo_vla.pipeline import Pipeline
from gipo_vla.run import start
from gipo_vla.run.plan import plan_collection
from gipo_vla.settings import runs
from tests.conftest import TINY_VLA, iterations

GPU, VARIABLE = torch.device("cuda", 0), "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def state() -> tuple[bool, bool, str | None]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        os.environ.get(VARIABLE),
    )


def test_a_gpu_gets_all_of_it_and_gives_it_back() -> None:
    with deterministic(True, GPU):
        # Not only warned of: attention is deterministic in the strict mode alone.
        assert state() == (True, False, ":4096:8") and not memory.fill_uninitialized_memory
    assert state() == (False, False, None) and memory.fill_uninitialized_memory


def test_nothing_changes_where_it_is_not_wanted_or_not_needed() -> None:
    for wanted, device in ((False, GPU), (True, torch.device("cpu"))):
        with deterministic(wanted, device):
            assert state() == (False, False, None)


def test_the_users_workspace_stays_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, ":16:8")
    with deterministic(True, GPU):
        assert os.environ[VARIABLE] == ":16:8"
    assert os.environ[VARIABLE] == ":16:8"
    monkeypatch.setenv(VARIABLE, ":0:0")
    with pytest.raises(UserError, match=VARIABLE), deterministic(True, GPU):
        pass


@pytest.mark.parametrize("command", ["train", "sft"])
def test_runs_compute_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str) -> None:
    seen = []

    class StoppedError(Exception):
        pass

    def joined(device: torch.device, timeout_s: float) -> Any:
        seen.append((device, *state()))
        raise StoppedError

    monkeypatch.setattr(group, "choose_device", lambda _: GPU)
    monkeypatch.setattr(group, "joined", joined)
    experiment = {"train": "point_reach", "sft": "metaworld_mlp_sft"}[command]
    settings: Any = [f"experiment={experiment}", "learner.deterministic=true"]
    settings = runs.load_sft(settings) if command == "sft" else runs.load("train", settings)
    with pytest.raises(StoppedError):
        start.run(start.Start(settings), lambda *_: None)  # type: ignore[arg-type,return-value]
    assert seen == [(GPU, True, False, ":4096:8")]


NO_DETERMINISTIC_KERNEL = {
    # Of torch.use_deterministic_algorithms' documentation, those that a policy might come to use.
    *("bincount", "histc", "kthvalue", "median", "nanmedian", "put_", "nll_loss2d_forward", "ctc_loss"),
    *("adaptive_avg_pool2d_backward", "_adaptive_avg_pool2d_backward", "grid_sampler_2d_backward"),
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward"),
    *("reflection_pad1d_backward", "reflection_pad2d_backward", "max_pool3d_with_indices_backward"),
}


class Operations(TorchDispatchMode):
    """Notes the operations that CUDA has no deterministic kernel for."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.found = 0, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += 1
        floating_sum = name in ("cumsum", "cumsum_") and args[0].is_floating_point()
        if name in NO_DETERMINISTIC_KERNEL or floating_sum:
            self.found.add(name)
        return func(*args, **(kwargs or {}))


SMALL = ("rollout.workers=1", "rollout.env_steps=64", "learner.updates=2", "learner.batch_segments=4")


@pytest.mark.medium
@pytest.mark.parametrize("policy", [(), TINY_VLA], ids=["mlp", "vla"])
def test_no_operation_of_a_run_would_raise(process_group: None, policy: tuple[str, ...]) -> None:
    settings = runs.load("train", ["experiment=point_reach", *policy, *SMALL, "telemetry.wandb=off"])
    spec, cpu = environment_spec(settings), torch.device("cpu")
    pipeline = Pipeline(settings, build_policy(settings, spec, cpu), plan_collection(settings, spec, 1), cpu)
    with closing(pipeline), Operations() as operations:
        iterations(pipeline, 1)
    assert operations.count > 1000 and not operations.found
    with Operations() as operations:
        torch.ones(3).cumsum(0), torch.ones(3, dtype=torch.int64).cumsum(0), torch.ones(3).median(0)
    assert operations.found == {"cumsum", "median"}
