"""One compiled MuJoCo model a task and process, with which all simulations of that task take turns.

A model of Meta-World is 21 MB of meshes and textures, takes 0.1 s to compile, and would be needed once for
each task of each environment (16 environments of MT50: 17 GB). Only two of its fields differ between
episodes, where bodies and sites are, because metaworld's resets write them. So each simulation keeps these
two for itself and writes them into the common model when it is its turn.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cache

import mujoco
import numpy as np
from numpy.typing import NDArray

FIELDS = ("body_pos", "site_pos")
"""The fields that the 50 ``reset_model`` write; a test compares whole models."""

Values = tuple[NDArray[np.float64], ...]
"""Values of ``FIELDS``."""


class SharedModel:
    """A model and whose turn it is; get it from ``shared_model``."""

    def __init__(self, path: str) -> None:
        self.model = mujoco.MjModel.from_xml_path(path)
        self._fields = tuple(getattr(self.model, name) for name in FIELDS)
        self._pristine = self.values()
        self.holder: object | None = None
        self.hand_resets: OrderedDict[bytes, NDArray[np.float64]] = OrderedDict()
        """Simulated hand resets, least recently used first (``FastSawyer._reset_hand``)."""

    def values(self) -> Values:
        """A copy of what the model holds now."""
        return tuple(field.copy() for field in self._fields)

    def hand_to(self, holder: object | None, values: Values | None = None) -> None:
        """Make it this holder's turn, with its values (None: as compiled)."""
        for field, value in zip(self._fields, self._pristine if values is None else values):
            field[:] = value
        self.holder = holder


@cache
def shared_model(path: str) -> SharedModel:
    """The process's shared model of an XML file, compiled when first asked for."""
    return SharedModel(path)
