"""What ``gipo_vla.doctor`` says of this machine, OpenGL included."""

from __future__ import annotations

import subprocess
import sys

from gipo_vla import foreign
from gipo_vla.benchmarks.suite.job import Job

PROBE_TIMEOUT_S = 30
"""Less than the box, so that a probe that hangs hides nothing of the others."""


def measure(job: Job) -> None:
    """Have the doctor look; what it finds wrong is a figure, too."""
    command = [sys.executable, "-m", "gipo_vla.doctor", f"timeout={PROBE_TIMEOUT_S}"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    job.tell("doctor", foreign.parse_json(answer.stdout.splitlines()[-1]))
    job.close("doctor")
