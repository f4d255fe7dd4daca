"""Clone a policy from demonstrations: ``python -m gipo_vla.sft [overrides]``, or the same under torchrun.

    python -m gipo_vla.sft                                      the default experiment: a state policy
    python -m gipo_vla.sft experiment=metaworld_oft_tiny_sft    a small vision-language-action policy, pixels
    python -m gipo_vla.sft demonstrations=libero_hdf5 demonstrations.path=DIR env=libero_spatial ...
    python -m gipo_vla.sft resume=RUN_DIR                       resume a run
    python -m gipo_vla.sft run_dir=DIR resume=auto              begin it, or resume it if it is there
    python -m gipo_vla.train init_from=RUN_DIR ...              reinforce what was cloned

Records demonstrations of the environment's scripted experts (or reads a data set's), clones until the updates
are made or the held-out loss has settled, evaluates on initial states that no demonstration began with, and
leaves a run folder like training's, checkpoints of the same format included.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gipo_vla import cli
from gipo_vla.run import resume
from gipo_vla.run.cloning import Cloning
from gipo_vla.run.resume import Start
from gipo_vla.run.start import prepare_process, run
from gipo_vla.settings.cloning import SftSettings
from gipo_vla.telemetry.console import say

resolve = partial(resume.resolve, SftSettings)
"""Settings and run of the command's arguments; see ``run.resume.resolve``."""


def main(arguments: Sequence[str]) -> int:
    overrides = cli.handle_common_flags(arguments, "sft", __doc__ or "")
    if overrides is not None:
        prepare_process()
        clone(resolve(overrides))
    return 0


def clone(start: Start[SftSettings]) -> Path:
    """Clone until the run is complete or asked to stop; returns the run folder. See ``run.start.run``."""
    folder = run(start, Cloning)
    if (folder / "finished.json").exists():
        say(f"reinforce it with python -m gipo_vla.train init_from={folder} ...")
    return folder


if __name__ == "__main__":
    cli.run(main)
