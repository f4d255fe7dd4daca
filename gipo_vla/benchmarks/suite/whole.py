"""Whole iterations of the run's settings, cut short; the copy to the twin; memory beside the plan."""

from __future__ import annotations

from dataclasses import replace

from gipo_vla.benchmarks import training
from gipo_vla.benchmarks.suite.job import Job
from gipo_vla.benchmarks.suite.recording import observed
from gipo_vla.benchmarks.timing import device_name, timed
from gipo_vla.settings.schema import TrainingSettings

MOST_UPDATES = 4
MOST_ROUNDS = 5
FOR_THE_REST_S = 10.0
"""Kept free at the end of the box."""


def measure(job: Job) -> None:
    """Make an iteration to warm up, then as many as the box has room for."""
    settings, seen = observed(job.settings, job.folder / "recording")
    settings = shortened(settings)
    samples = settings.learner.updates * settings.learner.batch_segments * settings.replay.segment_length
    with training.prepared(settings) as (pipeline, memory):
        _, first = timed(pipeline.run_iteration, pipeline.device)
        if "end_to_end" in job.parts:
            rounds = max(1, min(MOST_ROUNDS, int((job.left - FOR_THE_REST_S) / first)))
            found = training.whole_iterations(pipeline, rounds, samples)
            figures = {
                "device": device_name(pipeline.device),
                "observations": seen,
                "uses_of_a_transition": uses(settings),
                "updates_timed": rounds * settings.learner.updates,
                **found,
                **training.used_and_planned(pipeline, memory),
                "numerical_floor": pipeline.numerical_floor,
            }
            job.tell("end_to_end", figures)
            job.close("end_to_end")
        if "copy" in job.parts:
            job.tell("copy", training.copies_to_the_twin(pipeline))
            job.close("copy")


def uses(settings: TrainingSettings) -> float:
    """How often a transition trains."""
    learner, made = settings.learner, settings.rollout.env_steps / settings.policy.chunk
    return learner.updates * learner.batch_segments * settings.replay.segment_length / made


def shortened(settings: TrainingSettings) -> TrainingSettings:
    """The settings with iterations of a few updates, each after one decision of every environment: every
    transition is used about as often as before, and the policy trains from the first update on."""
    learner, rollout = settings.learner, settings.rollout
    updates = min(learner.updates, MOST_UPDATES)
    batch = max(1, round(uses(settings) * rollout.envs / settings.replay.segment_length))
    return replace(
        settings,
        learner=replace(learner, updates=updates, batch_segments=batch, value_only_updates=0, policy_every=1),
        rollout=replace(rollout, env_steps=updates * rollout.envs * settings.policy.chunk),
    )
