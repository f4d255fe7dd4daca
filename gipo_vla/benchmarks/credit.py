"""Milliseconds that each credit takes for 64 rollouts of 64 chunks, beside a whole iteration.

The time of a credit in one iteration is that of everything it is asked: joining segments into episodes,
``on_group`` for every group, its share of ``end_iteration``, and ``on_batch`` for every micro-batch of every
update. The iteration beside it is a real one of the configured experiment with as many decisions, measured in
the same process; its updates are left as they are, so that it is rather too short than too long.

The rollouts are made up: the hand walks at random from one place, an object moves along now and then, a
quarter of the rollouts succeeds in its last step. 8 groups of 8 are the usual case, one group of 64 the
largest.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gipo_vla.assembly import build_policy, environment_spec, policy_features
from gipo_vla.benchmarks import Options
from gipo_vla.benchmarks.timing import timed
from gipo_vla.credit import (
    CreditContext,
    CreditSettings,
    GaeSettings,
    GraphSettings,
    GroupSettings,
    InformationGainSettings,
)
from gipo_vla.credit.base import CreditAssigner, CreditBatch, ExpertChunks
from gipo_vla.credit.information_gain.demonstration import DemonstrationScorerSettings
from gipo_vla.distributed import group
from gipo_vla.learner.micro_batches import micro_batch_sizes
from gipo_vla.pipeline import Pipeline
from gipo_vla.policies.base import Policy
from gipo_vla.replay import samplers
from gipo_vla.replay.ring import SegmentRing
from gipo_vla.replay.segment import Segment
from gipo_vla.rollout.collection import Collection
from gipo_vla.rollout.groups import GroupAdvantages
from gipo_vla.run.plan import plan_collection
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.console import figures_table

ROLLOUTS = 64
CHUNKS = 64
GROUPINGS = {"8 groups of 8": 8, "1 group of 64": 64}
"""Name -> rollouts a group."""
STRIDE = 0.02
"""Metres that the hand moves in a chunk, about."""
DEMONSTRATED = 2000

CREDITS: dict[str, CreditSettings] = {
    "gae": GaeSettings(),
    "group": GroupSettings(),
    "graph": GraphSettings(),
    "graph, structure=replay": GraphSettings(structure="replay"),
    "graph, state_key=embedding": GraphSettings(state_key="embedding"),
    "information_gain": InformationGainSettings(),
    "information_gain, base=gae": InformationGainSettings(base="gae"),
    "information_gain, scorer=demonstration": InformationGainSettings(
        scorer=DemonstrationScorerSettings(demonstrations="made up")
    ),
}


def run(settings: TrainingSettings, options: Options) -> dict[str, Any]:
    """Measure the iteration, then all credits in turn, ``options.repeats`` times, with groups of the usual
    size and with one of all rollouts."""
    torch.set_num_threads(settings.learner.threads)
    device = torch.device("cpu")
    with group.joined(device):
        iteration = _iteration_seconds(settings, options.repeats, device)
    spec = environment_spec(settings)
    policy = build_policy(settings, spec, device)
    asking = replace(settings, credit=GraphSettings(), rollout=replace(settings.rollout, group_size=8))
    plans = plan_collection(asking, spec, 1, device)
    cases = {
        (name, grouping): _Iteration(CREDITS[name], settings, plans, policy, GROUPINGS[grouping])
        for name, grouping in itertools.product(CREDITS, GROUPINGS)
    }
    rounds = [{case: one.seconds() for case, one in cases.items()} for _ in range(options.repeats)]
    medians = {
        name: {grouping: statistics.median(own[name, grouping] for own in rounds) for grouping in GROUPINGS}
        for name in CREDITS
    }
    _show(iteration, medians)
    return {
        "rollouts": ROLLOUTS,
        "chunks": CHUNKS,
        "repeats": options.repeats,
        "iteration_seconds": round(iteration, 3),
        "milliseconds": {
            name: {grouping: round(1e3 * seconds, 2) for grouping, seconds in own.items()}
            for name, own in medians.items()
        },
        "share": {
            name: {grouping: round(seconds / iteration, 5) for grouping, seconds in own.items()}
            for name, own in medians.items()
        },
    }


def _show(iteration: float, medians: dict[str, dict[str, float]]) -> None:
    columns = itertools.chain(*((f"{grouping}, ms", "share") for grouping in GROUPINGS))
    title = f"credit: {ROLLOUTS} rollouts x {CHUNKS} chunks, beside an iteration of {iteration:.2f} s"
    cells = {
        name: [(f"{1e3 * seconds:.1f}", f"{seconds / iteration:.2%}") for seconds in own.values()]
        for name, own in medians.items()
    }
    figures_table(title, columns, [(name, *itertools.chain(*own)) for name, own in cells.items()])


def _iteration_seconds(settings: TrainingSettings, repeats: int, device: torch.device) -> float:
    """Return the median seconds of an iteration of the configured experiment, with 64 x 64 decisions."""
    policy = build_policy(settings, environment_spec(settings), device)
    env_steps = ROLLOUTS * CHUNKS * policy.chunk * settings.env.action_repeat
    rollout = replace(settings.rollout, env_steps=env_steps)
    replay = replace(settings.replay, capacity=max(settings.replay.capacity, ROLLOUTS * CHUNKS))
    settings = replace(settings, rollout=rollout, replay=replay)
    plans = plan_collection(settings, environment_spec(settings), 1, device)
    pipeline = Pipeline(settings, policy, plans, device)
    measured = []
    try:
        pipeline.run_iteration()  # the first one collects twice
        for _ in range(repeats):
            done = pipeline.run_iteration()
            assert done is not None
            measured.append(done[1]["seconds"])
    finally:
        pipeline.close()
    return statistics.median(measured)


class _Iteration:
    """Everything that one credit is asked in one iteration."""

    def __init__(
        self,
        own: CreditSettings,
        settings: TrainingSettings,
        plans: Collection,
        policy: Policy,
        group_size: int,
    ) -> None:
        device = torch.device("cpu")
        rng = np.random.default_rng(0)
        self.credit: CreditAssigner = own.build()
        names = {name: array.shape for name, array in plans.spec.observation.items()}
        chunks = ExpertChunks(
            {"state": rng.normal(size=(DEMONSTRATED, *names["state"])).astype(np.float32)},
            rng.uniform(-1, 1, (DEMONSTRATED, policy.chunk, plans.spec.action_size)).astype(np.float32),
            np.zeros(DEMONSTRATED, np.int64),
        )
        self.credit.prepare(CreditContext(plans.spec, policy, device, 0, lambda folder, match: chunks))
        capacity = max(settings.replay.capacity, ROLLOUTS * CHUNKS)
        replay = SegmentRing(plans.layout, capacity, 8 << 30, samplers.uniform)
        features = policy_features(policy, device)
        self.hook = GroupAdvantages(self.credit, plans.spec.reward_scale, replay, features)
        self.groups = [
            [_episode(plans, number, env, env % 4 == 0, rng) for env in range(group_size)]
            for number in range(ROLLOUTS // group_size)
        ]
        for episodes in self.groups:
            for segment in (segment for episode in episodes for segment in episode):
                replay.add(segment)
        sizes = micro_batch_sizes(settings.learner.batch_segments, settings.micro_batch_segments)
        self.batches = settings.learner.updates * len(sizes)
        self.batch = _batch(plans, sizes[0])
        self.refresh_every = getattr(own, "refresh_every", 1)
        self._ask_about_groups()  # a scorer has to have learned before it costs anything
        self._end_iterations()

    def seconds(self) -> float:
        """One iteration's worth, with a share of what happens only every few of them."""
        _, refresh = timed(self._end_iterations)
        _, groups = timed(self._ask_about_groups)
        _, batches = timed(self._ask_about_batches)
        return refresh / self.refresh_every + groups + batches

    def _ask_about_groups(self) -> None:
        if self.credit.needs_groups:
            for episodes in self.groups:
                self.hook(episodes)
            self.credit.take_sums()

    def _ask_about_batches(self) -> None:
        for _ in range(self.batches):
            self.credit.on_batch(self.batch)

    def _end_iterations(self) -> None:
        for _ in range(self.refresh_every):
            self.credit.end_iteration(lambda own: own)


def _episode(
    plans: Collection, number: int, env: int, success: bool, rng: np.random.Generator
) -> list[Segment]:
    """A made-up episode of one group, as the segments that an actor closes."""
    names = [landmark.name for landmark in plans.spec.landmarks]
    walk = np.zeros((CHUNKS + 1, len(names)), np.float32)
    hand = [index for index, name in enumerate(names) if name.startswith("hand")]
    thing = [index for index, name in enumerate(names) if name.startswith("object")]
    walk[1:, hand] = rng.normal(scale=STRIDE, size=(CHUNKS, len(hand))).cumsum(axis=0)
    moves = rng.random((CHUNKS, 1)) < 0.1
    walk[1:, thing] = (moves * rng.normal(scale=STRIDE, size=(CHUNKS, len(thing)))).cumsum(axis=0)
    length = plans.layout.length
    starts = range(0, CHUNKS, length)
    batch = plans.layout.allocate(len(starts))
    for array in batch.arrays().values():
        array[:] = rng.random(array.shape)
    batch.executed[:], batch.success[:] = plans.layout.chunk, False
    batch.task[:], batch.env[:], batch.group[:] = 0, env, number
    batch.terminated[:] = batch.truncated[:] = False
    batch.terminated[-1], batch.truncated[-1] = success, not success
    for index, start in enumerate(starts):
        count = min(length, CHUNKS - start)
        batch.start[index], batch.length[index] = start, count
        batch.observations["landmarks"][index, : count + 1] = walk[start : start + count + 1]
    batch.success[-1, batch.length[-1] - 1, -1] = success
    return list(batch)


def _batch(plans: Collection, segments: int) -> CreditBatch:
    """What ``on_batch`` is given for one micro-batch."""
    shape = (segments, plans.layout.length)
    return CreditBatch(
        rewards=torch.rand(*shape, plans.layout.chunk),
        executed=torch.full(shape, plans.layout.chunk),
        mask=torch.ones(shape, dtype=torch.bool),
        terminated=torch.zeros(segments, dtype=torch.bool),
        values=torch.rand(shape),
        bootstrap_values=torch.rand(segments),
        log_ratios=torch.zeros(shape),
        advantages=torch.rand(shape),
    )
