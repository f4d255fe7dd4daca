"""The experiments and sweeps on Meta-World: what must stay as it was, what they mean, and that each runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gipo_vla.assembly import environment_spec
from gipo_vla.policies.mlp import MlpSettings
from gipo_vla.run.plan import plan_run
from gipo_vla.settings import runs
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.sweeping.folders import SweepFolder
from gipo_vla.sweeping.jobs import Job, plan
from gipo_vla.sweeping.settings import load
from gipo_vla.train import resolve, train
from tests.docs.pages import ROOT

DATA = ROOT / "docs" / "results" / "data"
KEPT = (
    "old_data_claim",
    "old_data_untrained",
    "paper_metaworld_small",
    "paper_metaworld_small_rates",
    "paper_metaworld_small_higher_rates",
)


def experiment(name: str, *overrides: str) -> TrainingSettings:
    return runs.load("train", [f"experiment={name}", *overrides])


def jobs_of(sweep: str) -> tuple[Job, ...]:
    return plan(load({"sweep": sweep}, [])).jobs


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
    assert all(job.settings.policy == MlpSettings(hidden=(512, 512)) for job in jobs_of("paper_metaworld"))
