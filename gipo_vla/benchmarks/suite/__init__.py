"""Everything that is worth knowing of a GPU, in one command and within so many minutes.

    python -m gipo_vla.benchmark suite out=suite minutes=9               a GPU, OpenVLA-OFT 7B
    python -m gipo_vla.benchmark suite out=suite minutes=9 size=tiny     a dry run, on any machine

Needs neither network nor checkpoint nor simulator: weights are random, and where LIBERO is missing recorded
observations stand in (``env=recorded env.assets=FOLDER``), else random pixels. The parts of ``stages.STAGES``
run in order of value. What costs nothing to build again has a process of its own; the parts that need the
same seven billion weights share one. A process is killed at its box, and a crash, a hang or a lack of memory
costs no more than what it had not measured yet: every figure is a line of ``suite.jsonl`` as soon as it is
there. What the budget has no room for is left out and said. The same command again measures what is missing.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from gipo_envs.errors import UserError, nearest
from gipo_vla.benchmarks import Options
from gipo_vla.benchmarks.suite.records import Records
from gipo_vla.benchmarks.suite.session import measure, missing
from gipo_vla.benchmarks.suite.stages import PARTS
from gipo_vla.benchmarks.suite.table import summary, table
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.distributed import group
from gipo_vla.settings import runs
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.console import console

RESERVE_S = 3.0
"""For the table."""
SIZES = {
    "7b": (
        "experiment=libero_spatial_oft7b_1gpu",
        "policy.random_weights=true",
        "policy.checkpoint=null",
        "policy.unnorm_key=null",
    ),
    "tiny": (
        "experiment=point_reach",
        "env=recorded",
        "env.observations=[images,proprio]",
        "policy=openvla_oft_tiny",
        "rollout.workers=1",
        "rollout.envs_per_worker=4",
        "replay.segment_length=4",
        "learner.batch_segments=4",
        "learner.micro_batch_segments=2",
        "rollout.env_steps=128",
        "learner.updates=2",
    ),
}
"""What a size is, unless the command says something else."""


def presets(options: Options) -> tuple[str, ...]:
    """Overrides of the size that was asked for."""
    return SIZES[options.size]


def run(settings: TrainingSettings, options: Options) -> dict[str, Any]:
    """Measure the parts that ``options.out`` does not have yet, within ``options.minutes``; ``status`` is 1
    if one of them gave no figure.

    Raises:
        UserError: no folder or one with other settings, a part that there is not, or no GPU for the 7B.
    """
    deadline = time.monotonic() + 60 * options.minutes - RESERVE_S
    if options.out is None:
        raise UserError("out is missing: give a folder for the suite, for instance out=suite")
    wanted = options.parts.split(",") if options.parts else list(PARTS)
    for name in wanted:
        if name not in PARTS:
            raise UserError(f"parts={options.parts}: {name!r} is none; {nearest(name, PARTS)}")
    device = group.choose_device(settings.learner.device)
    if options.size == "7b" and device.type == "cpu" and settings.learner.device != "cpu":
        raise UserError("torch finds no GPU here: size=tiny makes a dry run on the CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    with RunFolder(options.out).lock():
        _keep(settings, options.out / "settings.yaml")
        records = Records(options.out / "suite.jsonl")
        previous = signal.signal(signal.SIGTERM, _leave)
        try:
            measure(records, wanted, deadline)
        finally:
            signal.signal(signal.SIGTERM, previous)
    lines, goals = records.read(), options.size == "7b"
    console.print(table(lines, wanted, goals))
    return {**summary(lines, wanted, goals), "status": int(bool(missing(lines, wanted)))}


def _keep(settings: TrainingSettings, path: Path) -> None:
    """Write the settings down for the processes of the parts."""
    if path.exists() and runs.read_run(path) != settings:
        raise UserError(f"{path.parent} holds figures of other settings ({path.name}): take another folder")
    path.write_text(runs.to_yaml(settings))


def _leave(*_: object) -> None:
    """End what is under way, too."""
    raise SystemExit(143)
