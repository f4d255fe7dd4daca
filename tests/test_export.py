"""``gipo_vla.export``: from a run of a tiny vision-language-action policy to a published folder and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gipo_vla import export
from gipo_vla.assembly import build_policy, environment_spec
from gipo_vla.checkpoint.policy_files import find_checkpoint, load_policy
from gipo_vla.policies.openvla_oft import load
from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
from gipo_vla.run.resume import Start
from gipo_vla.settings import runs
from gipo_vla.train import train
from tests.conftest import TINY

IMAGES = (
    "policy=openvla_oft_tiny",
    "env.observations=[images,proprio]",
    "env.camera.height=84",
    "env.camera.width=84",
    "replay.segment_length=5",
)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    overrides = [text for text in TINY if not text.startswith(("policy.", "replay.segment_length"))]
    folder = tmp_path_factory.mktemp("export") / "run"
    return train(Start(runs.load("train", [*overrides, *IMAGES, f"run_dir={folder}"]), None))


@pytest.mark.medium
def test_a_trained_policy_reads_back_to_the_same_logits(run_folder: Path, tmp_path: Path) -> None:
    """Two action dimensions and no statistics: what the published layout does not say is recorded."""
    assert export.main([f"checkpoint={run_folder}", f"out={tmp_path / 'out'}"]) == 0
    checkpoint = find_checkpoint(run_folder)
    settings = runs.read_run(checkpoint / "config.yaml")
    spec = environment_spec(settings)
    trained = build_policy(settings, spec, torch.device("cpu"))
    assert isinstance(trained, OpenVlaOftPolicy)
    load_policy(trained, checkpoint)

    generator = torch.Generator().manual_seed(0)
    observations = {
        "images": torch.randint(0, 256, (3, 1, 84, 84, 3), dtype=torch.uint8, generator=generator),
        "proprio": torch.rand(3, 2, generator=generator),
        "task": torch.zeros(3, dtype=torch.int64),
    }
    read = load(tmp_path / "out")
    read.set_instructions(spec.instructions)
    again = build_policy(
        replace(
            settings, policy=replace(settings.policy, checkpoint=str(tmp_path / "out"), random_weights=False)
        ),
        spec,
        torch.device("cpu"),
    )
    expected = trained.act(observations, 1.0, greedy=True)
    for policy in (read, again):
        got = policy.act(observations, 1.0, greedy=True)
        torch.testing.assert_close(got.log_probs, expected.log_probs, atol=1e-6, rtol=0)
        torch.testing.assert_close(got.values, expected.values, atol=1e-5, rtol=1e-5)
        assert torch.equal(got.tokens, expected.tokens)


def test_export_says_what_it_needs() -> None:
    with pytest.raises(export.UserError, match="out is missing"):
        export.main(["checkpoint=somewhere"])
    with pytest.raises(export.UserError, match="seed=1: with checkpoint=RUN_DIR"):
        export.main(["checkpoint=a", "out=b", "seed=1"])
    with pytest.raises(export.UserError, match="checkpoint is missing"):
        export.main(["out=b"])
