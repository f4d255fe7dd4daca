"""Run by test_ranks.py under torchrun: the same global batches on however many ranks there are.

    python -m torch.distributed.run --nproc-per-node=N updates_on_ranks.py FOLDER

Rank 0 writes what the updates led to, for both ZeRO stages, both sizes of batch and several objectives;
every rank checks what it alone can see.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from gipo_envs import EnvironmentSettings, make_spec
from gipo_vla.credit.gae import GaeSettings
from gipo_vla.credit.normalization import AdvantageNormalizer
from gipo_vla.distributed import group
from gipo_vla.learner.learner import Learner
from gipo_vla.objectives.gipo import GipoSettings
from gipo_vla.objectives.m2po import M2poSettings
from gipo_vla.objectives.regularizers import RegularizerSettings
from gipo_vla.policies.mlp import MlpPolicy, MlpSettings
from gipo_vla.replay.segment import SegmentBatch, layout
from gipo_vla.settings.schema import LearnerSettings

CPU = torch.device("cpu")
LENGTH, CHUNK, BINS = 5, 3, 8
BATCHES = (4, 6)
CASES = {
    **{f"{stage}-{segments}": (stage, segments, GipoSettings()) for stage in (1, 2) for segments in BATCHES},
    "m2po": (1, 6, M2poSettings()),
    "auto": (1, 6, GipoSettings(sigma="auto")),
}
"""ZeRO stage, segments of a global batch, objective: the last two know the tokens of all ranks. By a bound
of 2 two ranks cut them into 2 and into 2 + 1, one rank into 2 + 2 and into 2 + 2 + 2."""


def make_batch(segments: int, seed: int) -> SegmentBatch:
    """A global batch with unequal numbers of valid tokens in its halves."""
    spec = make_spec(EnvironmentSettings("point_reach", "reach"))
    rng = np.random.default_rng(seed)
    batch = {}
    for name, field in layout(spec, LENGTH, CHUNK, 2, BINS).fields.items():
        batch[name] = rng.normal(size=(segments, *field.shape)).astype(field.dtype)
    batch["tokens"] = rng.integers(0, BINS, batch["tokens"].shape).astype(np.uint8)
    batch["log_probs"] = rng.normal(-2, 0.3, batch["log_probs"].shape).astype(np.float32)
    batch["length"] = np.array([5, 4, 3, 1, 2, 1][:segments], np.int32)
    batch["executed"] = rng.integers(1, CHUNK + 1, batch["executed"].shape).astype(np.int32)
    batch["temperature"][:] = 1.0
    batch["version"][:] = batch["iteration"][:] = 0
    return SegmentBatch.from_arrays(batch)


def make_learner(stage: int, segments: int, objective: Any) -> Learner:
    torch.manual_seed(0)
    spec = make_spec(EnvironmentSettings("point_reach", "reach"))
    policy = MlpPolicy(MlpSettings(hidden=(12,), bins=BINS, chunk=CHUNK), spec)
    settings = LearnerSettings(
        updates=1,
        batch_segments=segments,
        micro_batch_segments=2,
        policy_learning_rate=1e-2,
        value_learning_rate=1e-2,
        policy_gradient_clip=0.05,  # in force, so that the norm over ranks matters
        value_gradient_clip=0.05,
        warmup_iterations=0,
        schedule="constant",
        zero_stage=stage,  # type: ignore[arg-type]
    )
    return Learner(
        policy,
        settings,
        objective,
        RegularizerSettings(entropy_coefficient=0.01),
        GaeSettings(gamma=0.99).build(),
        AdvantageNormalizer("running"),
        CPU,
        10,
        1.0,
    )


def update(learner: Learner, batch: SegmentBatch) -> dict[str, float]:
    """One update on this rank's share of a global batch."""
    share = learner.segments_per_rank
    first = group.rank() * share
    update = learner.begin(batch.rows(slice(first, first + share)), 1)
    for index in range(learner.micro_batches):
        learner.micro_step(update, index)
    return learner.end(update)


def check_reductions() -> None:
    rank, world = group.rank(), group.world_size()
    assert group.gather({"rank": rank}) == [{"rank": r} for r in range(world)]
    assert group.from_first(f"chosen by {rank}") == "chosen by 0"
    assert float(group.sum_over_ranks(torch.tensor(rank + 1.0))) == world * (world + 1) / 2
    group.barrier()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    group.start(CPU)
    check_reductions()
    for case, (stage, segments, objective) in CASES.items():
        learner = make_learner(stage, segments, objective)
        rows = [update(learner, make_batch(segments, seed)) for seed in range(2)]
        gradients = learner.optimizer_tensors()
        spoiled = make_batch(segments, 2)
        spoiled.rewards[-1, 0, 0] = np.nan  # of the last rank alone
        rows.append(update(learner, spoiled))
        assert rows[-1] == {"learner/skipped": 1.0} and learner.version == 2, "skipped on all ranks alike"
        rows += [update(learner, make_batch(segments, seed)) for seed in (3, 4)]
        after = learner.optimizer_tensors()
        assert len(set(group.gather(json.dumps(rows)))) == 1, "metrics are the same on every rank"
        for name, tensor in after.items():
            for other in group.gather(tensor):
                assert torch.equal(tensor, other), f"{name} differs between ranks"
        counters = json.dumps(learner.counters()["objective"])
        assert len(set(group.gather(counters))) == 1, "every rank has learned the same"
        if group.rank() == 0:
            save_file(gradients, folder / f"early-{case}.safetensors")
            save_file(after, folder / f"late-{case}.safetensors")
            (folder / f"metrics-{case}.json").write_text(json.dumps(rows))
    group.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
