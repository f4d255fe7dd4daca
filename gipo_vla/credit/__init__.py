"""Credit assignment: advantages and value targets, at the close of a group or at the time of an update.

A credit is built by its settings class::

    credit = GaeSettings(gamma=0.99).build()
    output = credit.on_batch(CreditBatch(rewards, executed, mask, terminated, values, bootstrap_values))
"""

from gipo_vla.credit.base import (
    CreditAssigner,
    CreditBatch,
    CreditContext,
    CreditOutput,
    CreditSettings,
    GroupEpisode,
    register,
)
from gipo_vla.credit.gae import Gae, GaeSettings
from gipo_vla.credit.graph import GraphCredit, GraphSettings
from gipo_vla.credit.group import GroupRelative, GroupSettings
from gipo_vla.credit.information_gain import InformationGain, InformationGainSettings
from gipo_vla.credit.normalization import AdvantageNormalizer, NormalizationMode, advantage_moments

__all__ = [
    "AdvantageNormalizer",
    "CreditAssigner",
    "CreditBatch",
    "CreditContext",
    "CreditOutput",
    "CreditSettings",
    "Gae",
    "GaeSettings",
    "GraphCredit",
    "GraphSettings",
    "GroupEpisode",
    "GroupRelative",
    "GroupSettings",
    "InformationGain",
    "InformationGainSettings",
    "NormalizationMode",
    "advantage_moments",
    "register",
]
