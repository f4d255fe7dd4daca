"""One rank with two micro-batches, or two ranks with one each: the same gradients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gipo_vla.distributed import group

SCRIPT = Path(__file__).with_name("updates_on_ranks.py")


def torchrun(ranks: int, *arguments: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in group.TORCHRUN_NAMES}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"),
            *arguments,
        ],
        env=environment | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def run(ranks: int, folder: Path) -> Path:
    folder.mkdir()
    torchrun(ranks, str(SCRIPT), str(folder))
    return folder


@pytest.mark.medium
def test_the_number_of_ranks_changes_no_gradient(tmp_path: Path) -> None:
    """4 segments by a bound of 2: one rank with two micro-batches, or two ranks with one each. 6 segments:
    one rank with three of 2, or two ranks with one of 2 and one of 1 each."""
    one, two = run(1, tmp_path / "one"), run(2, tmp_path / "two")
    for case in ("1-4", "1-6", "2-4", "2-6", "m2po", "auto"):
        # After two updates the first moments are the clipped gradients, to rounding ...
        early = [load_file(folder / f"early-{case}.safetensors") for folder in (one, two)]
        assert early[0].keys() == early[1].keys()
        for name, tensor in early[0].items():
            scale = float(tensor.abs().max())
            torch.testing.assert_close(early[1][name], tensor, rtol=0, atol=2e-5 * scale, msg=name)
        # ... and the weights stay together (Adam magnifies rounding where gradients are about 0).
        late = [load_file(folder / f"late-{case}.safetensors") for folder in (one, two)]
        for name, tensor in late[0].items():
            if name.startswith("weight/"):
                torch.testing.assert_close(late[1][name], tensor, rtol=0, atol=2e-4, msg=name)
        assert late[0]["step/policy"] == late[1]["step/policy"] == 4
        rows = [json.loads((folder / f"metrics-{case}.json").read_text()) for folder in (one, two)]
        for first, second in zip(*rows, strict=True):
            assert first.keys() == second.keys()
            for name, value in first.items():
                assert second[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


@pytest.mark.slow
def test_two_ranks_train_from_beginning_to_end(tmp_path: Path, tiny_overrides: tuple[str, ...]) -> None:
    overrides = (*tiny_overrides, f"run_dir={tmp_path / 'run'}", "rollout.envs_per_worker=2", "iterations=3")
    overrides += ("learner.micro_batch_segments=4", "learner.batch_segments=6")  # above a rank's share of 3
    torchrun(2, "-m", "gipo_vla.train", *overrides, "learner.device=cpu", "eval.every_env_steps=200")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    # 2 ranks x 2 environments x 40 vector steps an iteration, and once more to begin with.
    assert [row["env_steps"] for row in rows] == [320, 480, 640]
    assert [row["updates"] for row in rows] == [2, 4, 6]
    evaluation = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert evaluation["episodes"] == 4, "shared out, not played twice"
    assert (tmp_path / "run/finished.json").is_file()
    checkpoint = next((tmp_path / "run/checkpoints").glob("0*"))
    assert sorted(path.name for path in checkpoint.glob("rank-*")) == ["rank-00000", "rank-00001"]
