"""The kinds of runs that are put under faults: small ones of every sort of command."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

COMMON = """
    learner.device=cpu rollout.workers=2 checkpoint.every_iterations=1 checkpoint.keep=3
    eval.video=false telemetry.wandb=off telemetry.report=false telemetry.log_every=1000
"""
POINT_REACH = """
    experiment=point_reach rollout.envs_per_worker=4 rollout.env_steps=320
    replay.capacity=1600 learner.updates=8 learner.batch_segments=8 learner.micro_batch_segments=8
    eval.episodes_per_task=32
"""
GROUPS = """
    credit=graph credit.structure=replay rollout.group_size=4 env.reward=sparse env.end_on_success=true
"""
TINY_VLA = """
    experiment=point_reach policy=openvla_oft_tiny env.observations=[images,proprio] env.camera.height=84
    env.camera.width=84 rollout.envs_per_worker=2 rollout.env_steps=96 replay.capacity=640
    replay.segment_length=5 learner.updates=2 learner.batch_segments=4 learner.micro_batch_segments=2
    eval.episodes_per_task=4
"""
METAWORLD = """
    experiment=metaworld_button_press env.step_limit=60 policy.hidden=[32] rollout.envs_per_worker=2
    rollout.env_steps=120 replay.capacity=1600 replay.segment_length=10 learner.updates=4
    learner.batch_segments=8 learner.micro_batch_segments=8 eval.episodes_per_task=4
    eval.every_env_steps=null
"""


@dataclass(frozen=True)
class Kind:
    """A sort of run; every run of a kind has the same settings, and so the same undisturbed reference."""

    settings: str
    iterations: int
    program: Literal["train", "torchrun", "sweep"] = "train"

    @property
    def roles(self) -> tuple[str, ...]:
        """The processes that it has beside simulator workers, the one that is started first."""
        return {"train": ("trainer",), "torchrun": ("agent", "rank"), "sweep": ("sweep", "trainer")}[
            self.program
        ]

    def command(self, folder: Path, seed: int = 0, *more: str) -> list[str]:
        """The command that begins a run in a folder, or resumes the one that is there."""
        settings = [*f"{self.settings} {COMMON} iterations={self.iterations}".split(), *more]
        if self.program == "sweep":
            grid = ("objective.sigma=0.5,1", f"seed={seed}", f"sweep_dir={folder}", "jobs=2")
            return [sys.executable, "-m", "gipo_vla.sweep", *settings, *grid]
        ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3")
        launcher = ranks if self.program == "torchrun" else ()
        run = ("-m", "gipo_vla.train", *settings, f"seed={seed}", f"run_dir={folder}", "resume=auto")
        return [sys.executable, *launcher, *run]

    def runs(self, folder: Path) -> list[Path]:
        """The run folders that the command has made, in a fixed order."""
        if self.program != "sweep":
            return [folder]
        return sorted(path.parent for path in folder.glob("*/config.yaml"))


KINDS = {
    "mlp": Kind(POINT_REACH, 40),
    "groups": Kind(POINT_REACH + GROUPS, 30),
    "vla": Kind(TINY_VLA, 10),
    "metaworld": Kind(METAWORLD, 40),
    "ranks": Kind(POINT_REACH, 24, "torchrun"),
    "sweep": Kind(POINT_REACH, 24, "sweep"),
}
