"""A training run whose rank 1 falls ill: ``SICK=raise|disk|hungry torchrun ... sick_rank.py overrides``."""

from __future__ import annotations

import errno
import os
from typing import Any

import numpy as np

from gipo_vla import cli, train
from gipo_vla.pipeline import Pipeline
from gipo_vla.replay.ring import HeldSegments, SegmentRing

run_iteration, save, drawable = Pipeline.run_iteration, HeldSegments.save, SegmentRing.drawable
saves, hungry_for = 0, 2


def raise_in_the_fourth_iteration(self: Pipeline, *arguments: Any) -> Any:
    if self.iteration == 3:
        raise RuntimeError("this rank is sick")
    return run_iteration(self, *arguments)


def fail_the_second_and_third_save(self: HeldSegments, folder: Any) -> None:
    global saves
    saves += 1
    if saves in (2, 3):
        folder.mkdir()
        (folder / "half.npy").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    save(self, folder)


def nothing_drawable_for_a_while(self: SegmentRing, version: int) -> Any:
    global hungry_for
    found = drawable(self, version)
    if version > 2 and hungry_for and len(found):  # the second iteration begins
        hungry_for -= 1
        return np.empty(0, np.int64)
    return found


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        if os.environ["SICK"] == "raise":
            Pipeline.run_iteration = raise_in_the_fourth_iteration  # type: ignore[method-assign]
        elif os.environ["SICK"] == "disk":
            HeldSegments.save = fail_the_second_and_third_save  # type: ignore[method-assign]
        else:
            SegmentRing.drawable = nothing_drawable_for_a_while  # type: ignore[method-assign]
    cli.run(train.main)
