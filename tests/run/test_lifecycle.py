"""What the lifecycle does whatever it runs: here a trainer that only counts."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from gipo_envs import EnvironmentSpec
from gipo_envs.errors import RunStoppedError, UserError
from gipo_vla.assembly import build_policy
from gipo_vla.checkpoint import folder as folders
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.checkpoint.run_state import Loaded, text_writer
from gipo_vla.checkpoint.writer import CheckpointWriter, Content
from gipo_vla.rollout.episodes import evaluation_plans
from gipo_vla.rollout.pool import WorkerPool
from gipo_vla.rollout.process import WorkerLostError
from gipo_vla.run.plan import RunPlan
from gipo_vla.run.resume import Start
from gipo_vla.run.start import run
from gipo_vla.run.trainer import Row, ShouldStop
from gipo_vla.settings.runs import load, load_sft, may_change
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.console import Position
from gipo_vla.train import resolve
from tests.conftest import MakeConfig

UPDATES = 3


class Counting:
    """Makes updates that count; of a policy that stays as it is."""

    failing_at: int | None = None
    """Updates after which this rank has a reason to stop."""
    made: list[Counting] = []  # noqa: RUF012  the trainers of a test

    def __init__(
        self,
        settings: TrainingSettings,
        spec: EnvironmentSpec,
        device: torch.device,
        stored: Path | None,
        plan: RunPlan,
    ) -> None:
        self.settings, self.spec, self.device, self.stored = settings, spec, device, stored
        self.policy = build_policy(settings, spec, device)
        self.iteration = self.updates = 0
        self.events: list[str] = []
        self.pool: WorkerPool | None = None
        Counting.made.append(self)

    def prepare(self, folder: RunFolder, checkpoint: Path | None) -> dict[str, str]:
        self.settings = replace(self.settings, run_dir=str(folder.path))
        self.events.append("prepare")
        return {"kind": "counting"}

    def start(self, checkpoint: Path | None) -> Loaded | None:
        self.events.append("start")
        if checkpoint is None:
            return None
        values = json.loads((checkpoint / "run.json").read_text())
        self.iteration, self.updates = values["iteration"], values["updates"]
        return Loaded(values)

    def close(self) -> None:
        self.events.append("close")

    @property
    def worker_processes(self) -> tuple[int, ...]:
        return ()

    @property
    def done(self) -> str | None:
        total = self.settings.iterations
        return "counted to the end" if self.iteration >= total else None

    @property
    def state(self) -> tuple[int, int]:
        return self.iteration, self.updates

    def run_iteration(self, should_stop: ShouldStop) -> tuple[Row, dict[str, float]] | None:
        while self.updates < UPDATES * (self.iteration + 1):
            self.updates += 1
            if should_stop():
                return None
        self.iteration += 1
        env_steps = 10 * self.iteration
        return {"iteration": self.iteration, "env_steps": env_steps, "updates": self.updates}, {
            "seconds": 0.0
        }

    def problem(self) -> str | None:
        return "it is tired" if self.updates == self.failing_at else None

    def position(self) -> Position:
        return Position(self.iteration, self.settings.iterations, f"count {self.iteration}")

    def status(self, row: Row, timings: Mapping[str, float]) -> str:
        return f"updates {row['updates']}"

    def save(self, writer: CheckpointWriter, tracker_id: str | None) -> None:
        values = {"iteration": self.iteration, "updates": self.updates, "tracker_id": tracker_id}
        content = Content({"run.json": text_writer(json.dumps(values))}, 1)
        writer.begin(self.iteration, self.updates, content, background=False)
        self.events.append(f"save {self.iteration}-{self.updates}")

    @contextmanager
    def simulators(self) -> Iterator[WorkerPool]:
        self.events.append("simulators")
        with WorkerPool(self.settings.env, self.spec, 1, 2, 1, lambda plan: plan, 60.0) as pool:
            pool.begin([evaluation_plans(self.spec, 1)[0]] * pool.envs)
            yield pool

    def counters(self) -> dict[str, Any]:
        return {"iterations": self.iteration, "env_steps": 10 * self.iteration, "updates": self.updates}

    def plot(self, folder: RunFolder, evaluation: Mapping[str, Any]) -> Path:
        assert not folder.finished.exists()
        folder.learning_curve.write_bytes(b"")
        self.events.append("plot")
        return folder.learning_curve


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "made", [])


def count(settings: TrainingSettings) -> tuple[RunFolder, Counting]:
    folder = RunFolder(run(Start(settings), Counting))
    return folder, Counting.made[-1]


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def test_a_run_from_its_folder_to_its_last_line(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_config("iterations=4", "checkpoint.every_iterations=2", "eval.every_env_steps=20")
    folder, trainer = count(settings)
    assert trainer.events == [
        *("prepare", "start", "simulators", "save 2-6", "simulators"),  # at 20 and at 40 env steps
        *("save 4-12", "simulators", "close", "plot", "close"),
    ], "and nothing of a trainer runs any more when finished.json is written"
    assert [row["iteration"] for row in rows(folder)] == [1, 2, 3, 4]
    evaluated = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
    assert [(row["iteration"], row["env_steps"]) for row in evaluated] == [(2, 20), (4, 40)]
    finished = json.loads(folder.finished.read_text())
    assert finished["iterations"] == 4 and finished["updates"] == 12
    assert finished["checkpoint"] == "000004-0000012" == folders.names(folder.checkpoints)[0]
    said = capsys.readouterr().err
    assert "counting" in said and "count 1  updates 3" in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("counted to the end; success once") and last.endswith(f"are in {folder.path}")


def test_stopped_by_itself_and_resumed(make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    folder, trainer = count(make_config("iterations=3", "stop_after=2", "checkpoint.every_iterations=2"))
    assert trainer.events == ["prepare", "start", "save 2-6", "close"], "one checkpoint of one state"
    assert f"stopped after count 2; resume it with resume={folder.path}" in capsys.readouterr().err
    assert not folder.finished.exists()
    with folder.metrics.open("a") as file:
        file.write('{"iteration": 3, "of": "a process that was killed before it saved"}\n')
    run(resolve([f"resume={folder.path}", "learner.updates=5"]), Counting)
    assert [row["updates"] for row in rows(folder)] == [3, 6, 9]
    resumed = Counting.made[-1]
    assert resumed.stored == folder.checkpoints and resumed.events[2] == "save 3-9"
    said = capsys.readouterr().err
    assert f"resuming from {folder.checkpoints / '000002-0000006'}" in said
    assert "changed since the run began: learner.updates: 2 -> 5" in said
    assert folder.finished.exists()


def test_a_trainer_that_fails_leaves_a_checkpoint(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counting, "failing_at", 5)
    with pytest.raises(RunStoppedError, match=r"^it is tired; stopped after count 1; resume it with resume="):
        count(make_config("iterations=3"))
    trainer = Counting.made[-1]
    assert trainer.events == ["prepare", "start", "save 1-5", "close"]
    monkeypatch.setattr(Counting, "failing_at", None)
    folder = RunFolder(Path(str(trainer.settings.run_dir)))
    run(resolve([f"resume={folder.path}"]), Counting)
    assert [row["updates"] for row in rows(folder)] == [3, 6, 9], "the iteration was completed, not repeated"


def test_a_launcher_whose_end_shows_after_its_signal_was_killed_all_the_same(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With status 0 this rank's own torchrun would wait for the one that is gone."""

    def reason_to_stop(trainer: Counting) -> None:
        if trainer.updates == 5:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Counting, "problem", reason_to_stop)
    monkeypatch.setattr(
        "gipo_vla.run.lifecycle.launcher_is_gone", lambda: "save 1-5" in Counting.made[-1].events
    )
    with pytest.raises(RunStoppedError, match=r"^a torchrun of this run was killed, .*; resume it"):
        count(make_config("iterations=3"))


def test_workers_that_cannot_be_kept_alive_end_a_run_in_one_line(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> NoReturn:
        raise WorkerLostError("simulator worker 0 hung, 6 times in a row")

    monkeypatch.setattr(WorkerPool, "begin", lost)
    with pytest.raises(RunStoppedError, match=r"in a row; resume from its last checkpoint with resume="):
        count(make_config("iterations=1"))
    assert Counting.made[-1].events[-1] == "close"


def test_a_run_whose_video_takes_too_long_is_complete_without(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_slow(*_: Any) -> NoReturn:
        raise WorkerLostError("simulator worker 0 took too long")

    monkeypatch.setattr(WorkerPool, "films", too_slow)
    folder, _ = count(make_config("iterations=1", "eval.video=true"))
    said = " ".join(capsys.readouterr().err.split())
    assert "no video: simulator worker 0 took too long" in said and "videos/" not in said
    assert folder.finished.exists() and folder.evaluation.exists()


def test_a_run_begun_by_another_process_meanwhile_is_not_written_over(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_config()
    lock = RunFolder.lock

    def lock_after_the_other_has_left(self: RunFolder, patience: float = 0.0) -> Any:
        self.config.write_text("the other's")
        return lock(self, patience)

    monkeypatch.setattr(RunFolder, "lock", lock_after_the_other_has_left)
    with pytest.raises(UserError, match="already holds a run"):
        count(settings)
    assert RunFolder(Path(str(settings.run_dir))).config.read_text() == "the other's"
    assert Counting.made[-1].events == []


def test_settings_that_a_resume_may_change() -> None:
    """The settings classes declare it; the declaration nearest to the setting decides."""
    training = load("train", ["policy=openvla_oft_tiny", "credit=information_gain"])
    cloning = load_sft(["policy=openvla_oft_tiny"])
    for settings in (training, cloning):
        for key in ("env.camera.width", "seed", "policy.chunk", "init_from"):
            assert not may_change(settings, key)
        for key in ("env.assets", "policy.compile", "rollout.workers", "eval.video"):
            assert may_change(settings, key)
    for key in ("replay.segment_length", "rollout.group_size", "credit.name", "credit.scorer.input"):
        assert not may_change(training, key)
    for key in ("replay.capacity", "learner.policy_learning_rate", "objective.name", "credit.scorer.memory"):
        assert may_change(training, key)
    assert not may_change(cloning, "learner.policy_learning_rate") and may_change(cloning, "learner.threads")
    assert not may_change(cloning, "sft.batch_size") and may_change(cloning, "sft.steps")
