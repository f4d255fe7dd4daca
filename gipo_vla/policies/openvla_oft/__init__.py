"""OpenVLA-OFT as a policy, from stock transformers modules."""

from gipo_vla.policies.openvla_oft.construction import build, load
from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
from gipo_vla.policies.openvla_oft.reading import CheckpointMismatch, LoadReport
from gipo_vla.policies.openvla_oft.reference import action_logits, action_states, training_loss
from gipo_vla.policies.openvla_oft.settings import Architecture, OpenVlaOftSettings, TowerSettings
from gipo_vla.policies.openvla_oft.writing import ExportSummary, export

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
