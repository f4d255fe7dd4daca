"""The parts of the suite in order of value, and the processes that measure them.

The floor, the learner and acting need the same seven billion weights and nothing else of a run: they share a
process, because imports, CUDA's start and drawing the weights measure nothing. Each writes its figures before
the next begins, and what one that fails keeps from being measured is tried again without it. Whole iterations
have a process of their own, with simulators' workers; and so has what needs no large network.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A process and what it measures."""

    name: str
    """Of the module beside this one whose function ``measure`` it runs."""
    parts: tuple[str, ...]
    box: float
    """Seconds after which it is killed."""
    least: float
    """Seconds without which it is not begun."""
    beside: bool = False
    """Computes on the CPU only, while the next stages run."""


STAGES = (
    Stage("counted", ("counted",), box=240.0, least=30.0, beside=True),
    Stage("installation", ("doctor",), box=80.0, least=15.0),
    Stage("network", ("floor", "learner", "act"), box=190.0, least=40.0),
    Stage("whole", ("end_to_end", "copy"), box=130.0, least=60.0),
    Stage("resuming", ("resume",), box=85.0, least=40.0),
    Stage("two_ranks", ("ranks",), box=50.0, least=25.0),
)
PARTS = tuple(part for stage in STAGES for part in stage.parts)
