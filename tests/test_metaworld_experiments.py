"""The experiments and sweeps on Meta-World: what they mean, what must stay as it was, and that each runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gipo_vla.assembly import environment_spec
from gipo_vla.options import load
from gipo_vla.policies.mlp import MlpSettings
from gipo_vla.run.plan import plan_run
from gipo_vla.settings import runs
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.sweeping import jobs
from gipo_vla.train import resolve, train
