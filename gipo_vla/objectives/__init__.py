"""Surrogate losses over log-ratios and advantages, regularizers, and diagnostics of staleness.

An objective is a settings class with a method ``surrogate``::

    output = objective_loss(log_probs, behaviour_log_probs, advantages, mask, GipoSettings(sigma=0.5))
    loss = output.loss.sum() / valid_tokens_of_all_ranks
"""

from gipo_vla.objectives.base import (
    ObjectiveOutput,
    ObjectiveSettings,
    Surrogate,
    objective_loss,
    register,
)
from gipo_vla.objectives.diagnostics import StalenessDiagnostics, staleness_metrics
from gipo_vla.objectives.gipo import GipoSettings
from gipo_vla.objectives.no_clip import NoClipSettings
from gipo_vla.objectives.ppo import PpoSettings
from gipo_vla.objectives.regularizers import RegularizerOutput, RegularizerSettings, regularizer_loss
from gipo_vla.objectives.sapo import SapoSettings

__all__ = [
    "GipoSettings",
    "NoClipSettings",
    "ObjectiveOutput",
    "ObjectiveSettings",
    "PpoSettings",
    "RegularizerOutput",
    "RegularizerSettings",
    "SapoSettings",
    "StalenessDiagnostics",
    "Surrogate",
    "objective_loss",
    "register",
    "regularizer_loss",
    "staleness_metrics",
]
