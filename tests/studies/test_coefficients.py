"""The figure of docs/objectives.md: its table is what the code gives."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from gipo_envs.errors import UserError
from gipo_vla.settings import registry
from gipo_vla.studies import coefficients as study

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"


def test_every_objective_is_in_the_figure() -> None:
    registered = registry.objectives.classes().items()
    # Tests of plugins may have registered others in this process.
    assert set(study.OBJECTIVES) == {
        name for name, cls in registered if cls.__module__.startswith("gipo_vla.")
    }


def test_table_of_the_page() -> None:
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines()]
    shown = [cells for cells in lines if len(cells) == 9 and cells[1] in study.SIGNS]
    assert len(shown) == 2 * len(study.OBJECTIVES)
    for name, sign, *values in shown:
        own = study.coefficients(name.strip("`"), np.array(study.LOG_RATIOS), study.SIGNS[sign])
        assert values == [f"{c:.2f}" for c in own], (name, sign)


def test_values_by_hand() -> None:
    x = np.array([-1.0, 1.0])
    assert study.coefficients("gipo", x, 1.0) == pytest.approx([math.exp(-1.5), math.exp(0.5)])
    assert study.coefficients("ppo", x, 1.0) == pytest.approx([math.exp(-1), 0])
    # The interpolated policy is one update of 20 back: its distance is 0.95, within the cap of 5.
    assert study.coefficients("decoupled_ppo", np.array([1.0, 1.8]), 1.0) == pytest.approx([math.e, 0])
    # From 0.3 to 0.3 e: by 0.52.
    assert study.coefficients("dppo", x, 1.0) == pytest.approx([math.exp(-1), 0])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main([f"out={tmp_path / 'made'}"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["files"] == ["coefficients.csv", "coefficients.png"]
    assert all((tmp_path / "made" / name).stat().st_size > 500 for name in told["files"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*choose another with out=PATH"):
        study.main([f"out={tmp_path / 'file'}"])
    with pytest.raises(UserError, match="the only option is out=PATH"):
        study.main(["what"])
