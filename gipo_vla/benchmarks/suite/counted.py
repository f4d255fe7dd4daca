"""What ``benchmark cost`` counts for the run's settings, to stand beside what is measured."""

from __future__ import annotations

import torch

from gipo_vla.benchmarks import Options
from gipo_vla.benchmarks.cost import count_sample
from gipo_vla.benchmarks.roofline import CARDS
from gipo_vla.benchmarks.suite.job import Job


def measure(job: Job) -> None:
    """Count an update and a decision."""
    torch.set_num_threads(1)
    card = CARDS[Options().card]
    sample = count_sample(job.settings, card)
    decisions = job.settings.rollout.envs
    beside = {
        "micro_batch": sample.counted.rows,
        "act_ms_per_decision": round(1e3 * sample.counted.act.seconds / decisions, 3),
    }
    job.tell("counted", sample.figures(card) | beside)
    job.close("counted")
