"""What ``benchmark cost`` counts for the run's settings, to stand beside what is measured."""

from __future__ import annotations

import torch

from gipo_vla.benchmarks import Options, cost
from gipo_vla.benchmarks.suite.job import Job


def measure(job: Job) -> None:
    """Count an update."""
    torch.set_num_threads(1)
    job.tell("counted", cost.run(job.settings, Options()))
    job.close("counted")
