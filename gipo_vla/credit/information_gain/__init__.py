"""IGPO: the credit, and the scorers whose confidence it turns into rewards."""

from gipo_vla.credit.information_gain.credit import (
    InformationGain,
    InformationGainSettings,
    discounted_sums,
    information_gain,
    standardized_by_index,
)

__all__ = [
    "InformationGain",
    "InformationGainSettings",
    "discounted_sums",
    "information_gain",
    "standardized_by_index",
]
