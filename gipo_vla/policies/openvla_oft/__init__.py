"""OpenVLA-OFT as a policy, from stock transformers modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gipo_vla.policies.openvla_oft.settings import Architecture, OpenVlaOftSettings, TowerSettings

if TYPE_CHECKING:
    from gipo_vla.policies.openvla_oft.construction import build, load

__all__ = ["Architecture", "OpenVlaOftSettings", "TowerSettings", "build", "load"]


def __getattr__(name: str) -> Any:
    """Import what makes policies when it is asked for: settings are read by every command, and transformers
    takes seconds."""
    if name not in ("build", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gipo_vla.policies.openvla_oft import construction

    return getattr(construction, name)
