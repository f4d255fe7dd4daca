"""The iteration: its schedule, its reproducibility, and every variant of it from end to end."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from gipo_envs.errors import UserError
from gipo_vla.assembly import environment_spec
from gipo_vla.pipeline import dispatch_schedule
from gipo_vla.replay.segment import Segment, SegmentBatch
from gipo_vla.rollout.actor import Actor
from gipo_vla.run.plan import plan_run
from gipo_vla.run.resume import Start
from gipo_vla.settings import runs
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.train import train
from tests.conftest import MakeConfig, MakePipeline, iterations, stopped_and_resumed


def segment_key(segment: Segment) -> tuple[int, int, int]:
    return segment.env, segment.episode, segment.start


# ----------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize("steps", [1, 2, 7, 40, 100])
@pytest.mark.parametrize("micro_batches", [1, 3, 40, 64])
def test_vector_step_s_goes_before_micro_batch_floor_s_m_over_s(steps: int, micro_batches: int) -> None:
    expected = [0] * micro_batches
    for step in range(steps):
        expected[math.floor(step * micro_batches / steps)] += 1
    assert dispatch_schedule(steps, micro_batches) == expected
    assert sum(expected) == steps


def test_an_iteration_follows_the_schedule(make_pipeline: MakePipeline) -> None:
    """Dispatches and micro-batches in their order; copies to the behaviour policy between updates only."""
    pipeline = make_pipeline("rollout.env_steps=28", "learner.updates=3", "rollout.sync_every=2")
    assert pipeline.plans.steps == 7 and pipeline.learner.micro_batches == 2
    pipeline.acts_beside = False
    iterations(pipeline, 1)
    events: list[str] = []
    for owner, method, name in (
        (pipeline.pool, "dispatch", "step"),
        (pipeline.learner, "micro_step", "micro"),
        (pipeline.learner, "begin", "begin"),
        (pipeline, "synchronize", "copy"),
        (pipeline.replay, "add", "add"),
    ):
        plain = getattr(owner, method)

        def recorded(*arguments: Any, plain: Any = plain, name: str = name) -> Any:
            events.append(name)
            return plain(*arguments)

        setattr(owner, method, recorded)
    iterations(pipeline, 1)
    # 7 steps over 6 micro-batches: two before the first. Updates 4, 5, 6 of the run: copies after 4 and 6.
    schedule = ["begin", "step", "step", "micro", "step", "micro", "copy"]
    schedule += ["begin", "step", "micro", "step", "micro"]
    schedule += ["begin", "step", "micro", "step", "micro", "copy"]
    assert [event for event in events if event != "add"] == schedule
    assert "add" not in events[: len(schedule)], "what is finished meanwhile enters the replay at the end"


def test_acting_beside_the_learner_changes_no_metric(make_pipeline: MakePipeline) -> None:
    """At the same time or in turn: the same steps act with the same weights."""
    settings = ("rollout.env_steps=28", "learner.updates=3", "rollout.sync_every=2")
    rows = []
    for beside in (True, False):
        pipeline = make_pipeline(*settings)
        assert pipeline.acts_beside, "the default on a CPU"
        pipeline.acts_beside = beside
        rows.append(iterations(pipeline, 4))
    assert rows[0] == rows[1]


def test_vector_steps_and_an_update_are_under_way_at_the_same_time(make_pipeline: MakePipeline) -> None:
    """Each waits for the other; in turn they would wait for ever. The copy of the weights waits for both."""
    pipeline = make_pipeline("learner.updates=2")
    iterations(pipeline, 1)
    stepping, learned = threading.Event(), threading.Event()
    events: list[str] = []
    advance, micro_step, synchronize = pipeline._advance, pipeline.learner.micro_step, pipeline.synchronize

    def slow_advance(steps: int) -> None:
        stepping.set()
        assert learned.wait(60)
        advance(steps)
        events.append("stepped")

    def slow_micro_step(*arguments: Any) -> None:
        assert stepping.wait(60)
        micro_step(*arguments)
        learned.set()

    def copy() -> None:
        events.append("copied")
        synchronize()

    pipeline._advance, pipeline.learner.micro_step = slow_advance, slow_micro_step  # type: ignore[method-assign]
    pipeline.synchronize = copy  # type: ignore[method-assign]
    iterations(pipeline, 1)
    assert events == ["stepped", "copied"] * 2


@pytest.mark.parametrize("at_fault", ["advance", "micro_step"])
def test_a_failure_of_either_ends_the_update(make_pipeline: MakePipeline, at_fault: str) -> None:
    """Nothing is left under way that would still use the workers."""
    pipeline = make_pipeline()
    iterations(pipeline, 1)
    owner = pipeline.actor if at_fault == "advance" else pipeline.learner

    def fail(*_: Any) -> None:
        raise RuntimeError("broken on purpose")

    setattr(owner, at_fault, fail)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        pipeline.run_iteration()
    assert pipeline._acting._work_queue.empty()
    pipeline.close()


def test_what_an_iteration_collects_is_drawn_from_the_next_one_on(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline("iterations=5")
    inserted: dict[tuple[int, int, int], int] = {}
    order: list[list[tuple[int, int, int]]] = [[]]
    drawn: list[tuple[tuple[int, int, int], int]] = []
    add, begin = pipeline.replay.add, pipeline.learner.begin

    def spy_add(segment: Segment) -> None:
        collecting_only = len(pipeline.updates_done) == 0
        inserted[segment_key(segment)] = pipeline.iteration - collecting_only
        order[-1].append(segment_key(segment))
        add(segment)

    def spy_begin(segments: SegmentBatch, *others: Any) -> Any:
        drawn.extend((segment_key(segment), pipeline.iteration) for segment in segments)
        return begin(segments, *others)

    pipeline.replay.add, pipeline.learner.begin = spy_add, spy_begin  # type: ignore[method-assign]
    for _ in range(4):
        order.append([])
        iterations(pipeline, 1)
    assert len(drawn) == 4 * 2 * 4
    assert all(inserted[key] < iteration for key, iteration in drawn)
    assert any(inserted[key] == iteration - 1 for key, iteration in drawn)
    assert all(keys == sorted(keys) for keys in order[2:]), "in environment order"


def test_lags_are_measured_from_what_acted(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline("replay.capacity=320", "learner.updates=4", "rollout.env_steps=160")
    rows = iterations(pipeline, 8)
    versions = [row["updates"] for row in rows]
    assert versions == [4 * (i + 1) for i in range(8)]
    late, expected = rows[4:], plan_run(pipeline.config, pipeline.plans.spec, 1, "cpu").lag
    assert expected is not None
    for row in late:
        assert row["staleness/lag_iterations_max"] <= expected.greatest_iterations + 1
        assert row["staleness/lag_max"] <= 4 * (expected.greatest_iterations + 2)
    mean = np.mean([row["staleness/lag_iterations_mean"] for row in late])
    assert mean == pytest.approx(expected.mean_iterations, abs=0.35)
    assert np.mean([row["staleness/lag_mean"] for row in late]) == pytest.approx(4 * mean, rel=0.15)


def test_metrics_count_what_happened(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline("rollout.stagger=false")
    rows = iterations(pipeline, 3)
    # Episodes last 40 steps and an iteration is 40 vector steps of 4 environments; the first one collects
    # once more, to have something to draw from.
    assert [row["env_steps"] for row in rows] == [320, 480, 640]
    assert [row["episodes"] for row in rows] == [8, 4, 4]
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    assert [row["episode_env_steps"] for row in rows] == [40, 40, 40]
    assert [row["replay/transitions"] for row in rows] == [320, 480, 640]
    assert [row["replay/segments"] for row in rows] == [32, 48, 64]
    for row in rows:
        assert row["rollout/worker_faults"] == row["learner/skipped"] == 0
        assert all(value is None or math.isfinite(value) for value in row.values())
        json.dumps(row)


# ----------------------------------------------------------------------------------------- reproducibility


def metrics_bytes(settings: TrainingSettings) -> bytes:
    folder = train(Start(settings))
    data = (folder / "metrics.jsonl").read_bytes()
    assert len(data.splitlines()) == settings.iterations
    return data


def test_the_seed_decides_every_metric(make_config: MakeConfig, tmp_path: Path) -> None:
    first = metrics_bytes(make_config(f"run_dir={tmp_path / 'a'}"))
    again = metrics_bytes(make_config(f"run_dir={tmp_path / 'b'}"))
    other = metrics_bytes(make_config(f"run_dir={tmp_path / 'c'}", "seed=1"))
    assert first == again != other


def test_saving_evaluating_and_logging_more_often_changes_no_metric(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    plain = metrics_bytes(make_config(f"run_dir={tmp_path / 'a'}", "iterations=4"))
    busy = make_config(
        f"run_dir={tmp_path / 'b'}",
        "iterations=4",
        "checkpoint.every_iterations=1",
        "eval.every_env_steps=160",
        "eval.during_training_episodes_per_task=5",
        "eval.mode=sampled",
        "telemetry.log_every=1",
        "telemetry.wandb=offline",
    )
    assert metrics_bytes(busy) == plain
    folder = tmp_path / "b"
    assert len((folder / "evaluations.jsonl").read_text().splitlines()) == 4
    assert len(list((folder / "checkpoints").iterdir())) == 2 + 1, "the newest two, and latest"


def test_the_number_of_workers_changes_no_metric(make_pipeline: MakePipeline) -> None:
    one = iterations(make_pipeline("rollout.workers=1", "rollout.envs_per_worker=4"), 2)
    two = iterations(make_pipeline("rollout.workers=2", "rollout.envs_per_worker=2"), 2)
    assert one == two


INTERRUPTED = ("iterations=3", "learner.updates=3", "policy.normalizer_iterations=2", "rollout.sync_every=2")


VARIANTS = {
    "gae": (),
    "group": ("credit=group", "rollout.group_size=2"),
    "policy-every": ("learner.policy_every=2", "learner.value_scale=running"),
}


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("through_disk", [False, True])
def test_stopping_at_any_moment_and_going_on_changes_no_metric(
    make_pipeline: MakePipeline, tmp_path: Path, through_disk: bool, variant: str
) -> None:
    overrides = (*INTERRUPTED, *VARIANTS[variant])
    expected = iterations(make_pipeline(*overrides), 3)
    # Before, among and after an iteration's updates.
    saved = (1, 3, 4, 6, 9) if through_disk else ()
    rows, stops = stopped_and_resumed(
        make_pipeline, overrides, tmp_path / "checkpoints", lambda stop: stop in saved
    )
    assert stops == 1 + 3 * 3, "after the first round of collection, and after every update"
    assert json.dumps(rows) == json.dumps(expected), "also in the order of the names"


def test_a_lost_worker_costs_data_but_not_the_run(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline("rollout.workers=2", "rollout.envs_per_worker=2")
    iterations(pipeline, 1)
    os.kill(pipeline.pool.process_ids[0], signal.SIGKILL)
    row = iterations(pipeline, 1)[0]
    assert row["rollout/worker_faults"] == 1
    assert iterations(pipeline, 1)[0]["rollout/worker_faults"] == 1


# ------------------------------------------------------------------------------------------------ variants


@pytest.mark.parametrize(
    "overrides",
    [
        ("objective=ppo",),
        ("objective=sapo",),
        ("objective=no_clip",),
        ("objective.kernel=cauchy", "objective.sigma_neg_ratio=1.0"),
        ("rollout.collect=ready", "rollout.workers=2", "rollout.envs_per_worker=2"),
        ("policy.chunk=3", "replay.segment_length=5"),
        ("env.reward=sparse", "env.action_repeat=3", "replay.segment_length=5"),
        ("env.task=[reach,push]",),
        ("regularizers.kl_behaviour=exact", "regularizers.kl_behaviour_coefficient=0.1"),
        ("regularizers.kl_behaviour=exact",),  # logged, though it weighs nothing
        ("regularizers.kl_reference_coefficient=0.1", "regularizers.entropy_coefficient=0.01"),
        ("credit.values=stored", "credit.normalize=exact"),
        ("credit.importance_correction=vtrace",),
        ("replay.sampler=recency",),
        ("rollout.sync_every=2", "rollout.temperature=1.6"),
        ("learner.value_only_updates=3", "learner.warmup_iterations=1", "learner.schedule=cosine"),
        ("learner.zero_stage=2",),
        ("learner.policy_every=2",),
    ],
    ids=",".join,
)
def test_two_iterations_of(make_pipeline: MakePipeline, overrides: tuple[str, ...]) -> None:
    pipeline = make_pipeline(*overrides)
    before = [p.detach().clone() for p in pipeline.policy.parameters()]  # type: ignore[attr-defined]
    rows = iterations(pipeline, 2)
    after = list(pipeline.policy.parameters())  # type: ignore[attr-defined]
    assert not any(torch.equal(old, new) for old, new in zip(before, after))
    assert all(torch.isfinite(parameter).all() for parameter in after)
    assert rows[-1]["learner/skipped_total"] == 0 and rows[-1]["updates"] == 4
    assert rows[-1]["staleness/lag_iterations_mean"] > 0
    if "env.task=[reach,push]" in overrides:
        assert "task/push/success_once_recent" in rows[-1]


def test_group_credit_trains_on_complete_groups(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline("credit=group", "rollout.group_size=2", "env.reward=sparse", "iterations=3")
    rows = iterations(pipeline, 3)
    held = pipeline.replay.contents()
    assert len(held.group) and (held.group >= 0).all()
    outcomes: dict[int, dict[int, float]] = {}
    for segment in held:
        own = segment.advantages[: segment.length]
        assert len(set(own.tolist())) == 1, "an episode has one advantage"
        outcomes.setdefault(segment.group, {})[segment.env] = float(own[0])
    assert all(len(members) == 2 for members in outcomes.values())
    assert all(sum(members.values()) == pytest.approx(0, abs=1e-5) for members in outcomes.values())
    assert rows[-1]["loss/value"] == 0


def test_group_advantages_are_of_scaled_returns(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(
        "credit=group", "rollout.group_size=4", "credit.normalize_std=false", "env.reward_scale=0.25"
    )
    iterations(pipeline, 1)
    returns: dict[int, dict[int, float]] = {}
    advantages: dict[tuple[int, int], float] = {}
    for segment in pipeline.replay.contents():
        number, env, length = segment.group, segment.env, segment.length
        own = returns.setdefault(number, {})
        own[env] = own.get(env, 0.0) + 0.25 * float(segment.rewards[:length].sum())
        advantages[number, env] = float(segment.advantages[0])
    for number, own in returns.items():
        mean = np.mean(list(own.values()))
        for env, value in own.items():
            assert advantages[number, env] == pytest.approx(value - mean, abs=1e-3)


def test_the_normaliser_learns_for_its_iterations_only(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline("policy.normalizer_iterations=2", "rollout.stagger=false")
    counts = []
    for _ in range(3):
        iterations(pipeline, 1)
        normalizer = pipeline.policy.normalizer
        assert normalizer is not None and normalizer is pipeline.behaviour.normalizer
        counts.append(int(normalizer.count))
    assert counts == [320, 480, 480]
    # Those of the first 48 segments, each transition once.
    states = pipeline.replay.contents().observations["state"][:48, :-1].reshape(-1, 10)
    np.testing.assert_allclose(normalizer.mean, states.mean(0, dtype=np.float64), atol=1e-5)


# ---------------------------------------------------------------------------------------------- limits


def test_collecting_in_vain_names_the_lag_limit(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(
        "rollout.env_steps=4", "replay.max_lag=3", "rollout.max_collection_rounds=3", "rollout.stagger=false"
    )
    with pytest.raises(UserError, match=r"after 3 rounds.*replay\.max_lag \(3\)") as caught:
        iterations(pipeline, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("max_lag", [2, 5, 8, 12])
def test_a_lag_limit_holds_in_every_update(make_pipeline: MakePipeline, max_lag: int) -> None:
    """What may be drawn shrinks with every update of an iteration; the last one must still find a batch."""
    pipeline = make_pipeline(f"replay.max_lag={max_lag}", "learner.updates=3")
    for row in iterations(pipeline, 5):
        assert row["staleness/lag_max"] <= max_lag


def test_a_lag_limit_below_the_updates_of_an_iteration_is_refused(make_pipeline: MakePipeline) -> None:
    """However much is collected, the last update of the iteration could draw none of it."""
    with pytest.raises(UserError, match=r"replay\.max_lag"):
        iterations(make_pipeline("replay.max_lag=2", "learner.updates=4"), 1)


def test_a_segment_longer_than_an_episode_is_refused(make_pipeline: MakePipeline) -> None:
    with pytest.raises(UserError, match=r"replay\.segment_length is 21.*20 decisions"):
        make_pipeline("replay.segment_length=21", "policy.chunk=2")
    with pytest.raises(UserError, match=r"replay\.segment_length is 15.*14 decisions"):
        make_pipeline("replay.segment_length=15", "env.action_repeat=3")


def test_memory_for_less_than_a_batch_is_refused(make_config: MakeConfig) -> None:
    settings = make_config("replay.memory_limit_gb=3e-6")  # two segments of 1.3 KB
    with pytest.raises(UserError, match=r"replay\.memory_limit_gb"):
        plan_run(settings, environment_spec(settings), 1, "cpu")


def test_a_pipeline_that_cannot_begin_leaves_no_worker(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(Actor, "__init__", fail)
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(RuntimeError, match="no"):
        make_pipeline()
    assert {child.pid for child in psutil.Process().children()} == before


# --------------------------------------------------------------------------------------------- learning


def test_a_short_run_learns_to_reach(tmp_path: Path) -> None:
    """The whole system, with the settings of the shipped experiment: 16,000 env steps."""
    own = ("iterations=25", f"run_dir={tmp_path / 'run'}", "telemetry.wandb=off")
    settings = runs.load("train", ["experiment=point_reach", *own])
    folder = train(Start(settings))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[1]["success_once_recent"] < 0.3
    assert rows[-1]["success_once_recent"] > 0.9
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["mode"] == "greedy" and evaluation["episodes"] == 50
    assert evaluation["success_once"] > 0.9 and evaluation["sampled"]["success_once"] > 0.9
    assert (folder / "finished.json").is_file()
