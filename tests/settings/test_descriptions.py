"""Help and the page of settings follow from the settings classes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gipo_envs.errors import UserError
from gipo_vla.settings import registry
from gipo_vla.settings.descriptions import describe, help_on
from gipo_vla.settings.runs import load, to_dict

PAGE = Path(__file__).parent.parent.parent / "docs" / "settings.md"


def test_the_page_is_what_the_classes_say() -> None:
    # In a process of its own: plugins of other tests would be on the page.
    module = "gipo_vla.settings.descriptions"
    said = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, check=True).stdout
    assert PAGE.read_text() == said, f"run: python -m {module} > docs/settings.md"


@pytest.mark.parametrize("root", ["train", "sft"])
def test_every_setting_says_what_it_means(root: str) -> None:
    silent = [one.key for one in describe(root) if not one.meaning]
    assert not silent


def test_defaults_are_those_that_a_run_gets() -> None:
    """Of every setting that neither the experiment nor the environment's file changes."""
    values = to_dict(load("train", ["experiment=point_reach"]))
    told = {one.key: one.default for one in describe("train") if one.option in ("", "objective=gipo")}
    for key in ("learner.huber_delta", "objective.sigma", "rollout.sync_every", "telemetry.log_every"):
        section, _, name = key.partition(".")
        assert told[key] == str(values[section][name])


def test_help_on_a_setting_a_section_and_a_last_part() -> None:
    told = help_on("objective.sigma", "train")
    assert told.startswith("objective.sigma=1.0") and "trust kernel" in told
    assert help_on("sigma", "train") == told
    section = help_on("replay", "train")
    assert "replay.capacity=20000" in section and "whole number above 0" in section
    options = help_on("objective", "train")
    assert all(name in options for name in registry.objectives.classes())
    with pytest.raises(UserError, match=r"objective\.sigma"):
        help_on("objective.sigm", "train")


def test_strings_below_fields_are_read() -> None:
    strings = registry.schema(registry.objectives.get("gipo"))
    assert strings["sigma"]["description"].startswith("Width of the trust kernel")
