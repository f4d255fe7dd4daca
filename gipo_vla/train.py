"""Train a policy: ``python -m gipo_vla.train [overrides]``, or the same under torchrun.

    python -m gipo_vla.train                                     the default experiment, on this machine
    torchrun --nproc-per-node=8 -m gipo_vla.train experiment=... one actor-learner a GPU
    python -m gipo_vla.train resume=RUN_DIR                      resume a run
    python -m gipo_vla.train run_dir=DIR resume=auto             begin it, or resume it if it is there

Ends with an evaluation on initial states that training never draws, a learning curve, a video of the
trained policy, and one line that says where everything is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gipo_vla import cli
from gipo_vla.run import resume
from gipo_vla.run.reinforcement import Reinforcement
from gipo_vla.run.resume import Start
from gipo_vla.run.start import prepare_process, run
from gipo_vla.settings.schema import TrainingSettings

resolve = partial(resume.resolve, TrainingSettings)
"""Settings and run of the command's arguments; see ``run.resume.resolve``."""


def main(arguments: Sequence[str]) -> int:
    overrides = cli.handle_common_flags(arguments, "train", __doc__ or "")
    if overrides is not None:
        prepare_process()
        train(resolve(overrides))
    return 0


def train(start: Start[TrainingSettings]) -> Path:
    """Train until the run is complete or asked to stop; returns the run folder. See ``run.start.run``."""
    return run(start, Reinforcement, _write_report)


def _write_report(folder: Path) -> None:
    # Imported at the end: tables and figures take 60 MB that a training process need not hold.
    from gipo_vla.reporting import write_run_report

    write_run_report(folder)


if __name__ == "__main__":
    cli.run(main)
