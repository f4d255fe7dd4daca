"""A plugin as a user would write it, in a file of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gipo_envs import EnvironmentSettings, Family, WorkerCost, register
from gipo_envs.point_reach import make, make_spec
from gipo_vla.objectives import Surrogate
from gipo_vla.objectives import register as register_objective
from gipo_vla.settings.composition import preset


@register_objective
@dataclass(frozen=True)
class ConstantWeight:
    """Every token pulls alike, whatever its age."""

    name: Literal["constant_weight"] = "constant_weight"
    weight: float = 0.5
    """The coefficient of every token."""

    def surrogate(self, log_ratio: Tensor, advantages: Tensor) -> Surrogate:
        coefficient = log_ratio.new_full(log_ratio.shape, self.weight)
        return Surrogate(-coefficient * advantages, coefficient)


def _plain(settings: EnvironmentSettings) -> EnvironmentSettings:
    from dataclasses import replace

    return replace(settings, family="point_reach")


register(
    Family(
        "my_points",
        lambda settings: make_spec(_plain(settings)),
        lambda settings: make(_plain(settings)),
        WorkerCost(20_000_000),
        needs_opengl=False,
    )
)
preset("env", "my_far_points", {"family": "my_points", "task": "reach-far"})
