"""``replay.cache_features``: what frozen vision makes of images, kept beside the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from gipo_envs.errors import UserError
from gipo_vla.assembly import build_policy, environment_spec
from gipo_vla.checkpoint import run_state
from gipo_vla.pipeline import Pipeline
from gipo_vla.policies.base import PATCH_FEATURES
from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
from gipo_vla.run.plan import plan_collection, plan_run
from gipo_vla.settings import runs
from tests.conftest import TINY, TINY_VLA, iterations, save_checkpoint

CPU = torch.device("cpu")
RUN = (
    *(text for text in TINY if not text.startswith("policy.")),
    *TINY_VLA,
    "policy.training=lora",
    "replay.capacity=160",
    "rollout.env_steps=320",
    "replay.cache_features=true",
)
Make = Callable[..., Pipeline]


@pytest.fixture
def make(process_group: None) -> Iterator[Make]:
    pipelines: list[Pipeline] = []

    def build(*overrides: str) -> Pipeline:
        settings = runs.load("train", [*RUN, *overrides])
        spec = environment_spec(settings)
        collection = plan_collection(settings, spec, 1, CPU)
        pipelines.append(Pipeline(settings, build_policy(settings, spec, CPU), collection, CPU))
        return pipelines[-1]

    yield build
    for pipeline in pipelines:
        pipeline.close()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_kept_is_what_the_images_give(make: Make, precision: str) -> None:
    pipeline = make(f"learner.precision={precision}")
    row = iterations(pipeline, 1)[0]
    floor, exact = (1e-4, precision == "float32") if precision == "float32" else (0.1, False)
    assert 0 <= row["staleness/numerical_floor_max"] <= floor
    policy = pipeline.policy
    assert isinstance(policy, OpenVlaOftPolicy)
    held = pipeline.replay.contents()
    for segment in list(held)[:3]:
        rows = segment.length + 1  # and what followed
        seen = {name: torch.from_numpy(own[:rows]) for name, own in segment.observations.items()}
        images_only = {name: own for name, own in seen.items() if name != PATCH_FEATURES}
        again = policy.patch_features(images_only)
        assert again.dtype == seen[PATCH_FEATURES].dtype == (torch.float32 if exact else torch.int16)
        kept, made = (
            own if exact else own.view(torch.bfloat16).float() for own in (seen[PATCH_FEATURES], again)
        )
        torch.testing.assert_close(kept, made, atol=1e-5 if exact else 0.1, rtol=0)
        assert kept.abs().amax(dim=(1, 2)).min() > 0, "one for every observation"
        tokens = torch.from_numpy(segment.tokens.astype("int64"))
        evaluated = [
            policy.evaluate(
                {name: own[: segment.length] for name, own in observations.items()},
                tokens[: segment.length],
                torch.ones(segment.length),
            ).log_probs
            for observations in (seen, images_only)
        ]
        torch.testing.assert_close(*evaluated, atol=floor, rtol=0)


def test_training_never_looks_at_the_images(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make()
    iterations(pipeline, 1)
    policy = pipeline.policy
    assert isinstance(policy, OpenVlaOftPolicy)
    calls: list[int] = []
    policy.network.vision.register_forward_hook(lambda *_: calls.append(1))
    update = pipeline.learner.begin(pipeline.replay.sample(4, pipeline.replay_rng, 10), 2)
    for index in range(pipeline.learner.micro_batches):
        pipeline.learner.micro_step(update, index)
    assert pipeline.learner.end(update)["learner/skipped"] == 0 and not calls


@pytest.mark.slow
def test_a_resumed_run_goes_on_to_the_bit(make: Make, tmp_path: Path) -> None:
    whole = make()
    expected = iterations(whole, 2)
    first = make()
    assert iterations(first, 1) == expected[:1]
    folder = save_checkpoint(tmp_path, first)
    assert any(folder.rglob(f"*{PATCH_FEATURES}.npy"))
    second = make()
    run_state.load(folder, second)
    assert iterations(second, 1) == expected[1:]


def test_the_plan_counts_what_is_kept() -> None:
    plans = []
    for own in ("true", "false"):
        settings = runs.load("train", [*RUN, f"replay.cache_features={own}"])
        plans.append(plan_run(settings, environment_spec(settings), 1, CPU))
    cached, plain = (plan.memory for plan in plans)
    features = 36 * 96 * 4  # patches x width of both towers
    assert plans[0].collection is not None and plans[1].collection is not None
    of_segments = [plan.collection.layout.bytes_per_segment for plan in plans if plan.collection]
    assert of_segments[0] - of_segments[1] == 6 * features
    assert cached.replay > plain.replay and cached.batches > plain.batches


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("policy.training=full",), r"here they train \(policy.training=full\)"),
        (("policy.lora.towers=[language_model,vision]",), "lora.towers has vision"),
    ],
)
def test_vision_that_trains_is_refused(overrides: tuple[str, ...], message: str) -> None:
    settings = runs.load("train", [*RUN, *overrides])
    with pytest.raises(UserError, match=message):
        plan_run(settings, environment_spec(settings), 1, CPU)


def test_a_policy_without_vision_is_refused() -> None:
    settings = runs.load("train", [*TINY, "replay.cache_features=true"])
    with pytest.raises(UserError, match="policy=mlp has none"):
        plan_run(settings, environment_spec(settings), 1, CPU)
