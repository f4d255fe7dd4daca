"""Surrogate losses over log-ratios and advantages, regularizers, and diagnostics of staleness.

Importing this package registers every objective::

    output = objective_loss(log_probs, behaviour_log_probs, advantages, mask, GipoSettings(sigma=0.5))
    loss = output.loss.sum() / valid_tokens_of_all_ranks
"""

from gipo_vla.objectives.base import (
    ObjectiveOutput,
    Surrogate,
    get,
    names,
    objective_loss,
    register,
)
from gipo_vla.objectives.diagnostics import StalenessDiagnostics, staleness_metrics
from gipo_vla.objectives.gipo import GipoSettings
from gipo_vla.objectives.no_clip import NoClipSettings
from gipo_vla.objectives.ppo import PpoSettings
from gipo_vla.objectives.regularizers import RegularizerOutput, RegularizerSettings, regularizer_loss
from gipo_vla.objectives.sapo import SapoSettings

AnyObjectiveSettings = GipoSettings | PpoSettings | SapoSettings | NoClipSettings
"""Discriminated by ``name``."""

__all__ = [
    "AnyObjectiveSettings",
    "GipoSettings",
    "NoClipSettings",
    "ObjectiveOutput",
    "PpoSettings",
    "RegularizerOutput",
    "RegularizerSettings",
    "SapoSettings",
    "StalenessDiagnostics",
    "Surrogate",
    "get",
    "names",
    "objective_loss",
    "register",
    "regularizer_loss",
    "staleness_metrics",
]
