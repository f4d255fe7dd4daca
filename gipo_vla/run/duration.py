"""How long a run may take: an estimate, from declared costs of simulators and the arithmetic of the policy.

A core for every process is assumed, and a device that nobody else uses. It is a rough estimate, which a busy
machine exceeds many times over; a sweep takes what its finished jobs took instead as soon as there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

from gipo_envs import EnvironmentSpec
from gipo_envs.family import WorkerCost
from gipo_vla.policies.memory import Work
from gipo_vla.run.memory import micro_batch_samples
from gipo_vla.settings.cloning import SftSettings
from gipo_vla.settings.runs import RunSettings

OPERATIONS = {"cpu": 4e10, "cuda": 3e14}
"""Floating-point operations a second that networks reach: float32 on one core (measured with small ones),
bfloat16 on an H200 at a third of its peak."""
CALL_SECONDS = {"cpu": 1.5e-3, "cuda": 2e-2}
"""What a forward or backward pass takes however small it is (measured with an MLP on a CPU)."""
UPDATE_SECONDS = {"cpu": 5e-3, "cuda": 1e-2}
"""What an update takes beside them: drawing the batch, the optimiser's step, the metrics."""


@dataclass(frozen=True)
class Duration:
    """Estimated seconds."""

    iteration: float
    training: float
    evaluation: float
    """At the end and under way."""

    @property
    def total(self) -> float:
        return self.training + self.evaluation


def estimate_duration(
    settings: RunSettings, spec: EnvironmentSpec, world: int, device: str, cost: WorkerCost, steps: int
) -> Duration:
    """The estimate for one of ``world`` ranks; ``steps`` are the decisions of every environment in an
    iteration, 0 for cloning."""
    rollout, chunk = settings.rollout, settings.policy.chunk
    envs = rollout.envs
    micro_batch = micro_batch_samples(settings, world)
    arithmetic = settings.policy.arithmetic(Work(micro_batch, envs), spec)
    speed, call = OPERATIONS[device], CALL_SECONDS[device]
    images = spec.observation["images"].shape[0] if "images" in spec.observation else 0
    decision = cost.env_step_seconds * chunk * spec.action_repeat + cost.image_seconds * images
    vector_step_simulated = rollout.envs_per_worker * decision
    vector_step_acted = call + envs * arithmetic.act / speed
    if isinstance(settings, SftSettings):
        updates, samples = settings.sft.steps_per_iteration, settings.sft.batch_size // world
        iterations: float = settings.sft.steps / settings.sft.steps_per_iteration
        played = 0.0
    else:
        updates = settings.learner.updates
        samples = settings.learner.batch_segments // world * settings.replay.segment_length
        iterations = min(settings.iterations, settings.stop_after or settings.iterations)
        every = settings.eval.every_env_steps
        env_steps = iterations * steps * world * envs * chunk * spec.action_repeat
        played = settings.eval.during_training_episodes_per_task * (env_steps // every if every else 0)
    passes = 2 * -(-samples // micro_batch)
    learned = updates * (UPDATE_SECONDS[device] + passes * call + samples * arithmetic.train / speed)
    # Workers simulate while the learner trains; the behaviour policy acts in between.
    iteration = steps * vector_step_acted + max(steps * vector_step_simulated, learned)
    played += 2 * settings.eval.episodes_per_task  # greedy and sampled
    decisions = -(-spec.actions_limit // chunk)
    rounds = -(-played * len(spec.tasks) // (world * envs))
    evaluation = rounds * decisions * (vector_step_simulated + vector_step_acted)
    return Duration(iteration, iterations * iteration, evaluation)
