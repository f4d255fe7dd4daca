"""What ``python -m gipo_vla.benchmark NAME`` runs: a module for each measurement, called NAME, with a
function ``run(settings, options)`` that measures, prints a table on rank 0, and returns the figures for
JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gipo_vla.settings.schema import Positive, PositiveFloat

NAMES = ("rollout", "policy", "cost", "training", "record", "credit", "endurance", "soak", "suite")


@dataclass(frozen=True)
class Options:
    """The options of all measurements."""

    repeats: Positive = 5
    """rollout, credit: how often everything is measured in turn."""
    seconds: PositiveFloat = 3.0
    """rollout, policy: length of one measurement. endurance: between two looks at the run."""
    act_batch: Positive = 16
    """policy: observations in one call of act."""
    micro_batch: Positive = 8
    """policy: samples in one forward and backward pass."""
    card: Literal["H200", "H100"] = "H200"
    """cost: the card whose rates turn counts into times."""
    rounds: Positive = 3
    """training: iterations that are timed."""
    frames: Positive = 128
    """record: observations."""
    out: Path | None = None
    """record, endurance, soak, suite: folder to write to. Required there."""
    minutes: PositiveFloat = 30.0
    """soak: for how long faults come; runs under way are then seen to their end. suite: for all parts
    together."""
    kinds: str | None = None
    """soak: sorts of runs, separated by commas: mlp, groups, vla, metaworld, ranks, sweep; all of them unless
    given."""
    every: PositiveFloat = 2.5
    """soak: mean seconds between two faults of a run that moves."""
    jobs: Positive = 2
    """soak: runs side by side."""
    size: Literal["7b", "tiny"] = "7b"
    """suite: the network. tiny: a dry run on any machine."""
    parts: str | None = None
    """suite: which, separated by commas: counted, doctor, floor, learner, act, end_to_end, copy, resume,
    ranks; all of them unless given."""
