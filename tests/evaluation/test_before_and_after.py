"""The policy as it started beside the trained one; and a run that is none the wiser."""

from __future__ import annotations

from pathlib import Path

import imageio
import numpy as np
import pytest
from PIL import Image

from gipo_envs import EnvironmentSettings, make_spec
from gipo_vla.evaluation import before_and_after
from gipo_vla.evaluation.episodes import EpisodeResult
from gipo_vla.evaluation.video import HEIGHT, WIDTH
from gipo_vla.rollout.episodes import evaluation_plans
from gipo_vla.train import resolve, train

VIDEO = ("eval.video=true", "eval.video_episodes=3", "env.task=[reach,push]", "env.step_limit=16")


@pytest.fixture(autouse=True)
def _any_gl(monkeypatch: pytest.MonkeyPatch) -> None:
    """point_reach draws without OpenGL."""
    monkeypatch.setattr("gipo_envs.gl.choose", lambda: ("none", "drawn without OpenGL"))


def test_the_first_state_of_every_task_comes_first() -> None:
    spec = make_spec(EnvironmentSettings("point_reach", ("reach", "push")))
    plans = before_and_after.chosen_plans(spec, 3, 50)
    first = spec.evaluation_keys[0]
    assert [(plan.task, plan.initial_state) for plan in plans] == [(0, first), (1, first), (0, first + 1)]
    assert set(plans) <= set(evaluation_plans(spec, 50))
    assert len(before_and_after.chosen_plans(spec, 9, 1)) == 2


def test_episodes_are_kept_as_they_were(tmp_path: Path) -> None:
    spec = make_spec(EnvironmentSettings("point_reach", "reach"))
    rng = np.random.default_rng(0)
    results = [
        EpisodeResult(plan, success_once=bool(index), actions=[rng.random((3, 2), np.float32)] * 2)
        for index, plan in enumerate(evaluation_plans(spec, 2))
    ]
    before_and_after.save(tmp_path / "videos" / "before.npz", results)
    loaded = before_and_after.load(tmp_path / "videos" / "before.npz")
    for one, other in zip(loaded, results, strict=True):
        assert (one.plan, one.success_once) == (other.plan, other.success_once)
        assert np.array_equal(np.concatenate(one.actions), np.concatenate(other.actions))


def test_a_run_ends_with_the_video_also_after_a_continuation(
    tmp_path: Path, tiny_overrides: tuple[str, ...]
) -> None:
    plain, filmed = tmp_path / "plain", tmp_path / "filmed"
    common = (*tiny_overrides, *VIDEO, "replay.segment_length=4")
    train(resolve([*common, f"run_dir={plain}", "eval.video=false"]))
    train(resolve([*common, f"run_dir={filmed}", "stop_after=1"]))
    kept = (filmed / "videos" / before_and_after.BEFORE_FILE).read_bytes()
    train(resolve([f"resume={filmed}", "telemetry.report=true"]))

    for name in ("metrics.jsonl", "evaluation.json"):
        assert (filmed / name).read_bytes() == (plain / name).read_bytes(), "filming changes no number"
    assert not (plain / "videos").exists()
    assert (filmed / "videos" / before_and_after.BEFORE_FILE).read_bytes() == kept
    with imageio.get_reader(filmed / "videos" / before_and_after.VIDEO_FILE) as video:
        assert video.get_meta_data()["size"] == (2 * WIDTH, HEIGHT)
    with Image.open(filmed / "videos" / before_and_after.SHEET_FILE) as sheet:
        width = 2 * before_and_after.SHEET_FRAMES * WIDTH + before_and_after.DIVIDER.shape[1]
        assert sheet.size == (width // 2, 3 * HEIGHT // 2)
    page = (filmed / "report.html").read_text()
    assert "Before and after" in page and 'href="videos/before_and_after.mp4"' in page
