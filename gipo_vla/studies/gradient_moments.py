"""Exact moments of one-sample gradient estimates in the start state of the grid; see ``bias_variance``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gipo_vla.objectives import GipoSettings, NoClipSettings, PpoSettings, SapoSettings
from gipo_vla.objectives.base import ObjectiveSettings
from gipo_vla.studies.grid_world import ACTIONS, Array, advantages, leaning

UNIFORM = np.full(4, 0.25)
TARGETS: Mapping[str, Array] = {
    "untrained": np.stack([UNIFORM, UNIFORM, UNIFORM]),
    # The good policy goes S0 right S1 down goal, the poor one runs against walls and back to the start.
    "good": np.stack([leaning("right", 0.7), leaning("down", 0.7), leaning("right", 0.7)]),
    "poor": np.stack([leaning("left", 0.7), leaning("left", 0.7), leaning("up", 0.7)]),
}
"""Policies (3, 4) whose gradient is estimated."""

BEHAVIOURS: Mapping[str, Array] = {
    "uniform": UNIFORM,
    "right 0.40": leaning("right", 0.4),
    "right 0.70": leaning("right", 0.7),
    "right 0.94": leaning("right", 0.94),
    "down 0.70": leaning("down", 0.7),
    "left 0.70": leaning("left", 0.7),
    "left 0.94": leaning("left", 0.94),
}
"""Probabilities in S0 of the policies that act. One of them is on-policy for each target; the largest ratio
of all cases is 35 (|log rho| 3.6)."""

SIGMAS = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
EPSILONS = (0.1, 0.2, 0.3, 0.5)
ESTIMATORS: Mapping[str, ObjectiveSettings | None] = {
    **{f"gipo sigma={sigma:g}": GipoSettings(sigma=sigma, sigma_neg_ratio=1.0) for sigma in SIGMAS},
    **{f"gipo half sigma={sigma:g}": GipoSettings(sigma=sigma, sigma_neg_ratio=0.5) for sigma in SIGMAS},
    **{f"ppo epsilon={epsilon:g}": PpoSettings(clip_low=epsilon, clip_high=epsilon) for epsilon in EPSILONS},
    "sapo": SapoSettings(),
    "no_clip": NoClipSettings(),
    "zero": None,
}
"""``gipo half`` is GIPO with sigma_neg_ratio 0.5, the default in training; None estimates 0."""

SAMPLES = (1, 3, 10, 30, 100, 300, 1000, 10000)
"""n of MSE(n) in the tables."""
RIGHT = ACTIONS.index("right")


@dataclass(frozen=True)
class Moments:
    """Exact moments of a one-sample gradient estimate."""

    target: str
    behaviour: str
    estimator: str
    true_gradient: float
    mean: float
    variance: float
    cosine: float | None
    """None where the mean gradient is zero."""

    @property
    def bias(self) -> float:
        return self.mean - self.true_gradient

    def mse(self, samples: float) -> float:
        """Mean squared error of the mean of ``samples`` independent estimates."""
        return self.bias**2 + self.variance / samples

    def relative_mse(self, samples: float) -> float:
        """In units of the zero estimator's MSE, the squared true gradient: above 1 is worse than nothing."""
        return self.mse(samples) / self.true_gradient**2

    @property
    def signal_to_noise(self) -> float | None:
        """Mean along the true direction / standard deviation; None for the zero estimator."""
        if self.variance == 0:
            return None
        return self.mean * float(np.sign(self.true_gradient)) / self.variance**0.5

    @property
    def on_policy(self) -> bool:
        return bool(np.allclose(TARGETS[self.target][0], BEHAVIOURS[self.behaviour]))


def coefficients(settings: ObjectiveSettings | None, log_ratio: Array, advantage: Array) -> Array:
    """What multiplies A grad log pi for each action, by the objective's own function in float64."""
    if settings is None:
        return np.zeros_like(log_ratio)
    surrogate = settings.surrogate(torch.from_numpy(log_ratio), torch.from_numpy(advantage))
    return np.asarray(surrogate.coefficient.numpy(), np.float64)


def moments(target: str, behaviour: str, estimator: str) -> Moments:
    """Moments in one case, as sums over the four actions of S0."""
    policy, acting = TARGETS[target][0], BEHAVIOURS[behaviour]
    advantage = advantages(TARGETS[target])[0]
    coefficient = coefficients(ESTIMATORS[estimator], np.log(policy / acting), advantage)
    # Row a: d log pi(a) / d theta over the four logits, of a softmax policy.
    scores = np.eye(len(ACTIONS)) - policy
    gradients = (coefficient * advantage)[:, None] * scores
    mean = acting @ gradients
    true = policy * advantage
    length = float(np.linalg.norm(mean))
    return Moments(
        target,
        behaviour,
        estimator,
        true_gradient=float(true[RIGHT]),
        mean=float(mean[RIGHT]),
        variance=float(acting @ (gradients[:, RIGHT] - mean[RIGHT]) ** 2),
        cosine=float(mean @ true) / (length * float(np.linalg.norm(true))) if length > 0 else None,
    )


def all_moments() -> list[Moments]:
    """Every target, behaviour and estimator."""
    return [
        moments(target, behaviour, estimator)
        for target in TARGETS
        for behaviour in BEHAVIOURS
        for estimator in ESTIMATORS
    ]


def by_case(results: Sequence[Moments]) -> dict[tuple[str, str], dict[str, Moments]]:
    """(target, behaviour) -> estimator -> moments."""
    cases: dict[tuple[str, str], dict[str, Moments]] = {}
    for one in results:
        cases.setdefault((one.target, one.behaviour), {})[one.estimator] = one
    return cases


def typical_mse(own: Sequence[Moments], samples: float) -> float:
    """Geometric mean over cases of the MSE relative to the zero estimator's."""
    return float(np.exp(np.mean([np.log(one.relative_mse(samples)) for one in own])))
