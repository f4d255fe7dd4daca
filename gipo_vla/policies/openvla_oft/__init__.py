"""OpenVLA-OFT as a policy, from stock transformers modules.

Names other than the settings are imported when first asked for: settings are read by every command, and
transformers takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gipo_vla.policies.openvla_oft.settings import Architecture, OpenVlaOftSettings, TowerSettings

if TYPE_CHECKING:
    from gipo_vla.policies.openvla_oft.construction import build, load
    from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
    from gipo_vla.policies.openvla_oft.reading import CheckpointMismatch, LoadReport
    from gipo_vla.policies.openvla_oft.reference import action_logits, action_states, training_loss
    from gipo_vla.policies.openvla_oft.writing import ExportSummary, export

_MODULES = {
    "build": "construction",
    "load": "construction",
    "OpenVlaOftPolicy": "policy",
    "CheckpointMismatch": "reading",
    "LoadReport": "reading",
    "action_logits": "reference",
    "action_states": "reference",
    "training_loss": "reference",
    "ExportSummary": "writing",
    "export": "writing",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = [
    "Architecture",
    "CheckpointMismatch",
    "ExportSummary",
    "LoadReport",
    "OpenVlaOftPolicy",
    "OpenVlaOftSettings",
    "TowerSettings",
    "action_logits",
    "action_states",
    "build",
    "export",
    "load",
    "training_loss",
]
