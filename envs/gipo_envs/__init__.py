"""Robot simulators behind one protocol. Imports neither torch nor gipo_vla."""

from gipo_envs.errors import UserError
from gipo_envs.family import Family, Probe, WorkerCost
from gipo_envs.protocol import (
    EVALUATION_KEYS_START,
    ArraySpec,
    CameraSettings,
    ChunkResult,
    Environment,
    EnvironmentSettings,
    EnvironmentSpec,
    Landmark,
    Observation,
)
from gipo_envs.registry import families, make, make_spec, needs_opengl, register

__all__ = [
    "EVALUATION_KEYS_START",
    "ArraySpec",
    "CameraSettings",
    "ChunkResult",
    "Environment",
    "EnvironmentSettings",
    "EnvironmentSpec",
    "Family",
    "Landmark",
    "Observation",
    "Probe",
    "UserError",
    "WorkerCost",
    "families",
    "make",
    "make_spec",
    "needs_opengl",
    "register",
]
