"""Host memory of simulator workers, before any is started."""

from __future__ import annotations

from gipo_envs import EnvironmentSpec, registry


def worker_bytes(family: str, spec: EnvironmentSpec) -> int:
    """Memory of one worker once it has played every task."""
    return registry.get(family).worker_cost.bytes(spec)
