"""Which fault comes when, from the seed alone: gaps are exponential, so a fault may fall at any instant."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gipo_vla.benchmarks.soak.kinds import Kind

EARLY = 0.2
"""Share of faults whose gap begins with the launch, so that many fall into imports and loading; the others
wait until the run moves, and so do all that wait for a moment of a run that moves."""
FREEZE_SECONDS = 1.5
"""Mean time that a process is stopped for."""
DAMAGES = ("flipped", "cut short", "torn")


@dataclass(frozen=True)
class Traits:
    """What a run is put through beside what every run is."""

    loses_workers: bool
    """Workers are killed and hang until they are replaced; else the run must not lose any."""
    small_disk: bool
    """It lies on a small disk that is filled."""


@dataclass(frozen=True)
class Fault:
    """One fault."""

    act: str
    """What happens, see ``faults.ACTS``."""
    role: str
    """To which of a run's processes."""
    gap: float
    """Seconds after the fault before, or after the launch."""
    early: bool
    seconds: float
    """How long a process stays stopped."""
    signal: signal.Signals
    """By which it is asked to stop."""
    damage: str | None
    """What is done to a file of the newest checkpoint before the next launch."""
    at_once: bool
    """The next launch does not wait for what the last one left running."""
    clock: int
    """Seconds by which the monotonic clock of the next launch is ahead."""

    @property
    def name(self) -> str:
        return f"{self.role} {self.act}"


def traits(seed: int, run: int, kind: Kind, disks: bool) -> Traits:
    """What is special about a run.

    Args:
        disks: whether small disks can be made here.
    """
    random = np.random.default_rng([seed, run, 0])
    loses, small = random.random(2) < (0.35, 0.35)
    return Traits(bool(loses), bool(small and disks and kind.program == "train"))


def menu(kind: Kind, own: Traits) -> list[tuple[str, str]]:
    """The acts that a run may suffer and whom they strike; each is as likely as another."""
    acts = ("killed", "stopped", "hung, continued", "hung, killed")
    trainer = kind.roles[-1]
    found = [(act, role) for role in kind.roles for act in acts]
    found += [("hung, continued", "worker")]
    found += 2 * [("killed while saving", trainer), ("killed while metrics are written", trainer)]
    if own.loses_workers:
        found += 2 * [
            ("killed", "worker"),
            ("hung", "worker"),
            ("killed while a worker is replaced", trainer),
        ]
    if own.small_disk:
        found += 3 * [("disk full", trainer), ("killed while saving, disk full", trainer)]
    return found


def faults(seed: int, run: int, kind: Kind, own: Traits, every: float, clocks: bool) -> Iterator[Fault]:
    """The faults of a run, without end.

    Args:
        every: mean gap in seconds.
        clocks: whether a launch can have a clock of its own here.
    """
    random = np.random.default_rng([seed, run, 1])
    choices = menu(kind, own)
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    while True:
        act, role = choices[random.integers(len(choices))]
        yield Fault(
            act,
            role,
            gap=float(random.exponential(every)),
            early=bool(random.random() < EARLY) and not act.startswith("killed while"),
            seconds=min(float(random.exponential(FREEZE_SECONDS)), 5.0),
            signal=signals[random.integers(len(signals))],
            damage=DAMAGES[random.integers(len(DAMAGES))] if random.random() < 0.5 else None,
            at_once=bool(random.random() < 0.5),
            clock=int(random.integers(1, 10**7)) if clocks and random.random() < 0.25 else 0,
        )
