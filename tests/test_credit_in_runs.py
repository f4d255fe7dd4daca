"""Credits over groups under the whole pipeline: composed with objectives, stopped and continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gipo_envs import EnvironmentSettings, make_spec
from gipo_envs.errors import UserError
from gipo_vla.assembly import credit_context
from gipo_vla.checkpoint import run_state
from gipo_vla.imitation import demonstrations
from gipo_vla.imitation.demonstrations import Episode
from gipo_vla.pipeline import Pipeline
from gipo_vla.train import resolve, train
from tests.conftest import MakePipeline, iterations, save_checkpoint, stopped_and_resumed

CPU = torch.device("cpu")

GROUPS = ("rollout.envs_per_worker=8", "rollout.group_size=4", "env.reward=sparse")
GRAPH = (*GROUPS, "credit=graph", "rollout.group_size=4")
GAIN = (*GROUPS, "credit=information_gain", "rollout.group_size=4", "credit.refresh_every=2")


CONTRAST = (
    *(*GROUPS, "credit=group", "rollout.group_size=4"),
    *("rollout.group_filter=contrast", "rollout.group_filter_rounds=2"),
)

CREDITS = {
    "graph": GRAPH,
    "graph-replay": (*GRAPH, "credit.structure=replay", "credit.structure_transitions=200"),
    "gain": (*GAIN, "env.task=reach"),
    "gain-gae": (*GAIN, "credit.base=gae", "credit.scorer.input=features", "credit.coefficient=0.02"),
    "graph-embedding": (*GRAPH, "credit.state_key=embedding", "credit.clusters=8"),
}


@pytest.mark.parametrize("objective", ["gipo", "ppo"])
@pytest.mark.parametrize("credit", list(CREDITS))
def test_credits_and_objectives_compose(make_pipeline: MakePipeline, credit: str, objective: str) -> None:
    pipeline = make_pipeline(*CREDITS[credit], f"objective={objective}", "env.task=[reach,push]")
    rows = iterations(pipeline, 4)
    names = {name for name in rows[0] if name.startswith("credit/")}
    assert len(names) >= 5 and all(names <= row.keys() for row in rows)
    closed = [row for row in rows if row["episodes"] >= 4]
    assert closed and all(row["learner/skipped_total"] == 0 for row in rows)
    assert any(row[name] is not None for row in closed for name in names)
    json.dumps(rows)


VLA = (
    *("policy=openvla_oft_tiny", "env.observations=[images,proprio]", "policy.chunk=8"),
    *("env.camera.height=84", "env.camera.width=84", "replay.segment_length=5", "rollout.env_steps=320"),
)


@pytest.mark.medium
@pytest.mark.parametrize(
    "credit",
    [
        (*GRAPH, "credit.state_key=embedding"),
        (*GAIN, "credit.scorer.input=features", "credit.refresh_every=1"),
        (*GAIN, "credit.scorer=instruction", "policy.full_vocabulary=true"),
    ],
    ids=["graph-embedding", "gain-features", "gain-instruction"],
)
def test_credits_of_a_policy_that_sees(
    process_group: None, tiny_overrides: tuple[str, ...], tmp_path: Path, credit: tuple[str, ...]
) -> None:
    """A tiny vision-language-action policy: stopped after one iteration, and gone on with."""
    common = [text for text in tiny_overrides if not text.startswith("policy.")]
    common += [*VLA, *credit, f"run_dir={tmp_path / 'run'}", "stop_after=1", "iterations=2"]
    train(resolve(common))
    train(resolve([f"resume={tmp_path / 'run'}"]))
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and rows[-1]["learner/skipped_total"] == 0
    told = {name: value for name, value in rows[-1].items() if name.startswith("credit/")}
    if "credit.scorer=instruction" in credit:
        assert told["credit/gain_std"] > 0 and told["credit/scorer_version"] == 0
    elif "credit=graph" in credit:
        assert told["credit/merge_ratio"] > 0


def test_no_group_closed_means_null(make_pipeline: MakePipeline) -> None:
    """Episodes of 40 steps, iterations of 20: every other one closes no group."""
    pipeline = make_pipeline(*GRAPH, "rollout.env_steps=160", "env.end_on_success=false")
    rows = iterations(pipeline, 4)
    shares = [row["credit/merge_ratio"] for row in rows]
    assert None in shares and any(isinstance(share, float) for share in shares)
    assert all((row["credit/merge_ratio"] is None) == (row["episodes"] == 0) for row in rows)


def test_landmarks_are_stored_only_where_asked_for_and_change_nothing(make_pipeline: MakePipeline) -> None:
    """With nothing merged, GraphGPO is credit=group to the bit: what is stored besides has no effect."""
    plain = make_pipeline(*GROUPS, "credit=group", "rollout.group_size=4")
    graph = make_pipeline(
        *GRAPH, "credit.minimum_merge_ratio=1.0", "credit.beta_graph=0.5", "credit.beta_episode=0.5"
    )
    rows = [iterations(pipeline, 3) for pipeline in (plain, graph)]
    for first, second in zip(*rows):
        assert first.items() <= second.items()
        assert second["credit/fallback_share"] in (None, 1.0)
    assert "observation/landmarks" not in plain.replay.layout.fields
    held = graph.replay.contents()
    assert held.observations["landmarks"].shape[1:] == (11, 6)
    states = held.observations["state"][:, :, [0, 1, 2, 3, 4, 5]]
    np.testing.assert_allclose(held.observations["landmarks"], 0.1 * states, atol=1e-6)


@pytest.mark.parametrize("normalize", ["running", "exact"])
def test_groups_without_contrast_keep_an_advantage_of_zero(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, normalize: str
) -> None:
    """Every other group is given advantages whose mean is not 0, as unequal lengths of episodes make it."""
    overrides = (*GROUPS, "credit=group", "rollout.group_size=4", f"credit.normalize={normalize}")
    pipeline = make_pipeline(*overrides)
    on_group, seen = pipeline.credit.on_group, []

    def unequal(episodes: Any, older: Any = ()) -> Any:
        advantages = (3.0, -0.1, -0.1, -0.1) if len(seen) % 2 else (0.0,) * 4
        seen.append(on_group(episodes, older))
        return [np.full(len(own), value, np.float32) for own, value in zip(episodes, advantages)]

    monkeypatch.setattr(pipeline.credit, "on_group", unequal)
    normalize_batch, handed = pipeline.learner.normalizer.normalize, []

    def recorded(advantages: torch.Tensor, moments: torch.Tensor | None = None) -> torch.Tensor:
        normalized = normalize_batch(advantages, moments)
        handed.append((advantages, normalized))
        return normalized

    monkeypatch.setattr(pipeline.learner.normalizer, "normalize", recorded)
    iterations(pipeline, 4)
    before, after = (torch.cat([pair[at].flatten() for pair in handed]) for at in (0, 1))
    assert (before == 0).any() and (before > 0).any() and (before < 0).any()
    assert torch.equal(before.sign(), after.sign())
    assert not torch.equal(before, after)


def group_runs(pipeline: Pipeline) -> list[int]:
    """Groups in the order of the ring, one entry for each stretch of neighbours."""
    numbers = [segment.group for segment in pipeline.replay.contents()]
    return [number for at, number in enumerate(numbers) if at == 0 or numbers[at - 1] != number]


def test_groups_stay_together_in_the_ring_and_in_checkpoints(
    make_pipeline: MakePipeline, tmp_path: Path
) -> None:
    """Through insertion, eviction of the oldest, a checkpoint, and dealing out to other environments."""
    pipeline = make_pipeline(*GRAPH, "rollout.sync_every=1", "replay.capacity=900")
    iterations(pipeline, 6)
    assert pipeline.replay.added > len(pipeline.replay), "something was evicted"
    runs = group_runs(pipeline)
    assert len(runs) == len(set(runs)) > 3, "each group is one stretch"
    folder = save_checkpoint(tmp_path / "checkpoints", pipeline)
    same = make_pipeline(*GRAPH, "replay.capacity=900")
    run_state.load(folder, same)
    assert group_runs(same) == runs
    dealt = make_pipeline(*GRAPH, "replay.capacity=900", "rollout.envs_per_worker=4")
    assert run_state.load(folder, dealt).changes
    found = group_runs(dealt)
    assert sorted(found) == sorted(runs) and len(found) == len(set(found))


@pytest.mark.parametrize("match", ["state", "landmarks"])
def test_demonstrations_of_a_file_are_scored(make_pipeline: MakePipeline, tmp_path: Path, match: str) -> None:
    """Recorded every second action of seven; the last one has no whole chunk left and is not used."""
    folder = tmp_path / "demonstrations"
    spec = make_spec(EnvironmentSettings("point_reach", "reach", ("state", "landmarks")))
    rng = np.random.default_rng(0)
    episodes = (
        Episode(
            task=0,
            initial_state=number,
            actions=rng.uniform(-1, 1, (7, 2)).astype(np.float32),
            observed_at=np.array([0, 2, 4, 6]),
            observations={
                "state": rng.normal(size=(4, 10)).astype(np.float32),
                "landmarks": rng.normal(size=(4, 6)).astype(np.float32),
            },
        )
        for number in range(3)
    )
    demonstrations.write(folder, spec, episodes, "made up")
    overrides = (
        *GAIN,
        "credit.scorer=demonstration",
        f"credit.scorer.demonstrations={folder}",
        "policy.chunk=2",
    )
    pipeline = make_pipeline(*overrides, f"credit.scorer.match={match}", "replay.segment_length=5")
    rows = iterations(pipeline, 4)
    assert rows[-1]["credit/scorer_version"] == 1 and rows[-1]["credit/gain_std"] > 0
    assert ("observation/landmarks" in pipeline.replay.layout.fields) == (match == "landmarks")
    context = credit_context(pipeline.config, pipeline.plans.spec, pipeline.policy, CPU)
    assert context.read_demonstrations is not None
    chunks = context.read_demonstrations(folder, match)
    assert chunks.actions.shape == (9, 2, 2), "of 4 observations 3 have a whole chunk"


# ------------------------------------------------------------------------------------- groups with contrast


def test_only_groups_with_contrast_are_trained_on(make_pipeline: MakePipeline) -> None:
    """And what was left out is collected anew, in as many steps, within the limit."""
    plain, pipeline = make_pipeline(*CONTRAST, "rollout.group_filter=none"), make_pipeline(*CONTRAST)
    before = iterations(plain, 4)
    assert any(row["rollout/groups_without_contrast"] for row in before)
    assert "rollout/left_out_transitions" not in before[0]
    steps = [0]
    for number in range(5):
        row = iterations(pipeline, 1)[0]
        steps.append(row["env_steps"])
        rounds, left_out = row["rollout/group_filter_rounds"], row["rollout/left_out_transitions"]
        if number > 0:
            extra = steps[-1] - steps[-2] - 160
            assert extra >= min(left_out, 2 * 160) and rounds == -(-extra // 160)
        assert rounds <= 2
    held = pipeline.replay.contents()
    by_group = {number: held.advantages[held.group == number] for number in set(held.group.tolist())}
    assert by_group and all(own.any() for own in by_group.values())
    assert any(not segment.advantages.any() for segment in plain.replay.contents())


def test_nothing_is_collected_where_every_group_has_contrast(make_pipeline: MakePipeline) -> None:
    """Dense returns are never equal: the filter changes nothing but what is logged."""
    dense = (*CONTRAST, "env.reward=dense")
    rows = iterations(make_pipeline(*dense), 3)
    assert all(row.pop("rollout/left_out_transitions") == 0 for row in rows)
    assert all(row.pop("rollout/group_filter_rounds") == 0 for row in rows)
    assert rows == iterations(make_pipeline(*dense, "rollout.group_filter=none"), 3)


def test_a_run_in_which_nothing_succeeds_any_more_goes_on(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On what the replay has; the rounds of an iteration are limited, and their transitions are counted."""
    pipeline = make_pipeline(*CONTRAST)
    iterations(pipeline, 3)
    monkeypatch.setattr(pipeline.credit, "outcome", lambda episode: 0.0)
    added, rows = pipeline.replay.added, iterations(pipeline, 4)
    assert pipeline.replay.added - added <= 16, "what was released before"
    assert all(row["rollout/groups_without_contrast"] in (None, 1.0) for row in rows)
    assert max(row["rollout/group_filter_rounds"] for row in rows) == 2
    lags = [row["staleness/lag_iterations_mean"] for row in rows]
    assert lags == sorted(lags) and rows[-1]["learner/skipped_total"] == 0


def test_a_run_that_never_succeeds_says_what_to_do(make_pipeline: MakePipeline) -> None:
    never = ("env.step_limit=3", "replay.segment_length=3", "rollout.max_collection_rounds=3")
    with pytest.raises(
        UserError, match=r"all outcomes were equal in every group.*group_filter=contrast"
    ) as caught:
        iterations(make_pipeline(*CONTRAST, *never), 1)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------- stopping, going on


CREDITS_TO_STOP = CREDITS | {"contrast": CONTRAST}


@pytest.mark.parametrize("credit", list(CREDITS_TO_STOP))
def test_stopped_at_n_of_2n_writes_the_same_metrics(
    tmp_path: Path, tiny_overrides: tuple[str, ...], credit: str
) -> None:
    common = [*tiny_overrides, *CREDITS_TO_STOP[credit], "iterations=6", "policy.normalizer_iterations=4"]
    train(resolve([*common, f"run_dir={tmp_path / 'straight'}"]))
    halves = tmp_path / "halves"
    train(resolve([*common, f"run_dir={halves}", "stop_after=3"]))
    train(resolve([f"resume={halves}"]))
    metrics = (halves / "metrics.jsonl").read_bytes()
    assert metrics == (tmp_path / "straight" / "metrics.jsonl").read_bytes()
    rows = [json.loads(line) for line in metrics.splitlines()]
    assert [row["iteration"] for row in rows] == list(range(1, 7))
    told = {name: value for name, value in rows[-1].items() if name.startswith("credit/")}
    assert not told or any(value is not None for value in told.values())


@pytest.mark.parametrize("credit", list(CREDITS_TO_STOP))
def test_stopping_within_an_iteration_loses_no_diagnostic(
    make_pipeline: MakePipeline, tmp_path: Path, credit: str
) -> None:
    overrides = CREDITS_TO_STOP[credit]
    expected = iterations(make_pipeline(*overrides), 3)
    rows, _ = stopped_and_resumed(
        make_pipeline, overrides, tmp_path / "checkpoints", lambda stop: stop % 2 == 1
    )
    assert rows == expected
    if credit == "contrast":
        assert any(row["rollout/group_filter_rounds"] for row in rows), "stopped in them too"


def test_a_run_writes_a_few_small_graphs(tmp_path: Path, tiny_overrides: tuple[str, ...]) -> None:
    train(resolve([*tiny_overrides, *GRAPH, "iterations=8", f"run_dir={tmp_path / 'run'}"]))
    graphs = sorted((tmp_path / "run/graphs").iterdir())
    assert [path.name for path in graphs] == ["000002.json", "000004.json", "000006.json", "000008.json"]
    assert all(path.stat().st_size < 20_000 for path in graphs)
    graph = json.loads(graphs[-1].read_text())
    assert graph["episodes"] == 4 and graph["iteration"] == 8


# ------------------------------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("rollout.group_filter=contrast",), r"rollout\.group_filter=contrast.*credit=gae does not"),
        (("credit=graph", "rollout.group_size=1"), r"credit=graph compares.*rollout\.group_size"),
        ((*GRAPH, "credit.state_key=sim"), r"credit\.state_key is sim"),
        (("credit=information_gain", "rollout.group_size=1"), r"credit=information_gain.*group_size"),
        ((*GAIN, "credit.scorer=instruction"), r"credit\.scorer is instruction.*openvla_oft"),
        ((*GAIN, "credit.scorer=demonstration"), r"credit\.scorer\.demonstrations"),
        (
            (*GAIN, "credit.scorer=demonstration", "credit.scorer.demonstrations=/nowhere"),
            r"/nowhere holds no demonstrations",
        ),
    ],
    ids=str,
)
def test_one_line_says_what_cannot_be(
    make_pipeline: MakePipeline, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_pipeline(*overrides)
    assert "\n" not in str(caught.value)
