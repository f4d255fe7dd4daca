"""The experiments and sweeps on Meta-World: what must stay as it was, what they mean, and that each runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gipo_vla.assembly import environment_spec
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.credit import GaeSettings
from gipo_vla.policies.mlp import MlpSettings
from gipo_vla.run.plan import plan_run
from gipo_vla.settings import runs
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.sweeping.folders import SweepFolder
from gipo_vla.sweeping.jobs import Job, plan
from gipo_vla.sweeping.settings import load
from gipo_vla.telemetry.metrics import read_json_lines
from gipo_vla.train import resolve, train
from tests.docs.pages import ROOT

DATA = ROOT / "docs" / "results" / "data"
KEPT = (
    "paper_metaworld_small_rates",
    pytest.param("old_data_claim", marks=pytest.mark.slow),
    pytest.param("old_data_untrained", marks=pytest.mark.slow),
    pytest.param("paper_metaworld_small", marks=pytest.mark.slow),
    pytest.param("paper_metaworld_small_higher_rates", marks=pytest.mark.slow),
)


def experiment(name: str, *overrides: str) -> TrainingSettings:
    return runs.load("train", [f"experiment={name}", *overrides])


def jobs_of(sweep: str, *overrides: str) -> tuple[Job, ...]:
    return plan(load({"sweep": sweep}, overrides)).jobs


# --------------------------------------------------------------------------------------- what stays as it was


@pytest.mark.parametrize("sweep", KEPT)
def test_a_new_default_changes_no_published_run(sweep: str, tmp_path: Path) -> None:
    """The jobs are those whose data are kept, with the settings that they had."""
    folder = SweepFolder(tmp_path, [DATA / sweep])
    jobs = jobs_of(sweep)
    done = [job for job in jobs if folder.finished(job)]
    assert done and (len(done) == len(jobs) or sweep == "old_data_claim"), "that one may be under way"
    folder.check(done)
    # What did not exist at the time is not compared: it has to be off.
    for job in jobs:
        settings = job.settings
        assert settings.policy == MlpSettings(), "the policy of that time"
        assert settings.regularizers.final_entropy_fraction == 1
        assert settings.credit.normalized_limit == 10 and settings.credit.step_limit == "bootstrap"  # type: ignore[union-attr]


def test_the_older_default_is_still_there() -> None:
    settings = experiment("metaworld_button_press")
    assert settings.policy == MlpSettings()
    assert (settings.env.reward_scale, settings.regularizers.entropy_coefficient) == (0.02, 0.003)
    of_the_paper = jobs_of("paper_metaworld", "seed=22", "env.task=assembly-v3")
    assert all(job.settings.policy == MlpSettings(hidden=(512, 512)) for job in of_the_paper)


# --------------------------------------------------------------------------------------------- what they mean


def test_the_reference_has_the_settings_of_the_authors_script() -> None:
    settings = experiment("metaworld_reference")
    learner, credit, policy = settings.learner, settings.credit, settings.policy
    assert isinstance(credit, GaeSettings) and isinstance(policy, MlpSettings)
    assert (settings.objective.name, settings.objective.sigma) == ("gipo", 1.0)  # type: ignore[union-attr]
    assert (credit.gamma, credit.gae_lambda, credit.values, credit.step_limit) == (
        0.99,
        0.95,
        "stored",
        "terminal",
    )
    assert (learner.policy_learning_rate, learner.value_learning_rate) == (3e-4, 3e-3)
    assert learner.batch_segments * settings.replay.segment_length == 512
    assert (settings.rollout.env_steps, settings.replay.capacity, settings.env.reward_scale) == (
        500,
        20_000,
        1e-3,
    )
    assert learner.updates // learner.policy_every == 10
    assert settings.regularizers.kl_behaviour == "exact"
    plan = plan_run(settings, environment_spec(settings), 1, "cpu")
    assert plan.env_steps == pytest.approx(300_000, rel=0.01)
    # 39 numbers in, a shared layer of 512, one of each, 4 x 256 bins and a value; LayerNorm behind each.
    assert policy.parameters(environment_spec(settings)) == (
        (39 + 1) * 512 + 2 * (512 + 1) * 512 + 3 * 2 * 512 + (512 + 1) * (4 * 256 + 1)
    )


def test_mt10_has_one_policy_for_ten_tasks() -> None:
    settings = experiment("metaworld_mt10_mlp")
    spec = environment_spec(settings)
    assert len(spec.tasks) == 10
    assert plan_run(settings, spec, 1, "cpu").env_steps == pytest.approx(15e6, rel=0.01)


def test_ten_tasks_are_those_of_the_published_grid() -> None:
    ten, grid = jobs_of("metaworld_ten", "seed=1"), jobs_of("paper_metaworld", "seed=22", "objective=ppo")
    assert {job.settings.env.task for job in ten} == {job.settings.env.task for job in grid}
    assert len(ten) == 10
    assert all(2e6 <= job.plan.env_steps <= 3e6 for job in ten)


SMALL = (
    *("iterations=2", "rollout.workers=1", "rollout.envs_per_worker=10", "rollout.env_steps=1000"),
    *(
        "learner.updates=2",
        "learner.batch_segments=8",
        "learner.micro_batch_segments=8",
        "learner.policy_every=1",
    ),
    *("env.step_limit=100", "eval.episodes_per_task=1", "eval.video=false"),
    *("telemetry.wandb=off", "telemetry.report=false"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("experiment=metaworld_mlp",),
        ("experiment=metaworld_mlp", "objective=ppo"),
        ("experiment=metaworld_reference",),
        ("experiment=metaworld_mt10_mlp", "replay.capacity=6400"),
        ("experiment=metaworld_mt10_mlp", "replay.capacity=6400", "rollout.task_sampling=success"),
    ],
    ids=" ".join,
)
def test_each_runs(overrides: tuple[str, ...], tmp_path: Path) -> None:
    folder = RunFolder(train(resolve([*overrides, *SMALL, f"run_dir={tmp_path / 'run'}"])))
    rows = read_json_lines(folder.metrics)
    assert len(rows) == 2 and all(row["learner/skipped"] == 0 for row in rows)
    assert folder.finished.exists()
