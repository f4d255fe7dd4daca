"""Surrogate losses over log-ratios and advantages, regularizers, and diagnostics of staleness.

An objective is a settings class with a method ``surrogate``::

    output = objective_loss(log_probs, behaviour_log_probs, advantages, mask, GipoSettings(sigma=0.5))
    loss = output.loss.sum() / valid_tokens_of_all_ranks
"""

from gipo_vla.objectives.base import (
    ObjectiveOutput,
    ObjectiveSettings,
    Surrogate,
    Tokens,
    objective_loss,
    register,
)
from gipo_vla.objectives.cispo import CispoSettings
from gipo_vla.objectives.decoupled_ppo import DecoupledPpoSettings
from gipo_vla.objectives.diagnostics import StalenessDiagnostics, staleness_metrics
from gipo_vla.objectives.dppo import DppoSettings
from gipo_vla.objectives.gipo import GipoSettings
from gipo_vla.objectives.m2po import M2poSettings
from gipo_vla.objectives.no_clip import NoClipSettings
from gipo_vla.objectives.ppo import PpoSettings
from gipo_vla.objectives.regularizers import RegularizerOutput, RegularizerSettings, regularizer_loss
from gipo_vla.objectives.sapo import SapoSettings
from gipo_vla.objectives.vespo import VespoSettings

__all__ = [
    "CispoSettings",
    "DecoupledPpoSettings",
    "DppoSettings",
    "GipoSettings",
    "M2poSettings",
    "NoClipSettings",
    "ObjectiveOutput",
    "ObjectiveSettings",
    "PpoSettings",
    "RegularizerOutput",
    "RegularizerSettings",
    "SapoSettings",
    "StalenessDiagnostics",
    "Surrogate",
    "Tokens",
    "VespoSettings",
    "objective_loss",
    "register",
    "regularizer_loss",
    "staleness_metrics",
]
