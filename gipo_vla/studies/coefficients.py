"""What each objective makes of old data, as a figure: ``python -m gipo_vla.studies.coefficients``.

The coefficient c of a token, the factor in -c A grad log pi, against its log-ratio, for a positive and a
negative advantage, by the very function that training uses. Settings are the defaults; what an objective
knows besides:

    decoupled_ppo    the data are ``LAG`` updates old
    m2po             the log-ratios of the update are normal with standard deviation ``SPREAD``
    vespo            the chunk is one token
    dppo             the token had the probability ``PROBABILITY``
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gipo_envs.errors import UserError
from gipo_vla import cli, options
from gipo_vla.objectives.base import BatchObjective, objective_loss
from gipo_vla.reporting.style import COLOURS, SETTINGS, axes_grid
from gipo_vla.reporting.table import Table, show, write_csv
from gipo_vla.settings import registry
from gipo_vla.telemetry.console import console

LAG = 20.0
SPREAD = 1.0
PROBABILITY = 0.3
OBJECTIVES = (
    *("no_clip", "ppo", "sapo"),
    *("gipo", "cispo", "vespo"),
    *("decoupled_ppo", "m2po", "dppo"),
)
"""In the order of the figure; those that never clip a token away stand in the middle."""
SIGNS = {"A > 0": 1.0, "A < 0": -1.0}
LOG_RATIOS = (-2.0, -1.0, -0.3, 0.0, 0.3, 1.0, 2.0)
"""Of the table."""
WIDEST, HIGHEST = 3.0, 3.0


def coefficients(objective: str, log_ratio: NDArray[np.float64], advantage: float) -> NDArray[np.float64]:
    """c at each log-ratio (T,), for the conditions that the module names.

    Raises:
        UserError: there is no such objective.
    """
    settings: Any = registry.objectives.get(objective)()
    behaviour = torch.full((len(log_ratio), 1, 1), math.log(PROBABILITY))
    log_probs = torch.as_tensor(log_ratio, dtype=torch.float32)[:, None, None] + behaviour
    statistics = None
    if isinstance(settings, BatchObjective):
        normal = NormalDist(0, SPREAD)
        batch = torch.tensor([normal.inv_cdf((index + 0.5) / 10_000) for index in range(10_000)])
        # Independent of the sign of the advantage, which has the same share everywhere.
        batch, own = batch.repeat(2), torch.tensor([1.0, -1.0]).repeat_interleave(len(batch))
        statistics = settings.batch_statistics(batch, own, torch.ones_like(batch))
    output = objective_loss(
        log_probs,
        behaviour,
        torch.full((len(log_ratio),), advantage),
        torch.ones_like(log_probs, dtype=torch.bool),
        settings,
        lag=torch.full((len(log_ratio),), LAG),
        statistics=statistics,
    )
    return output.coefficient.flatten().double().numpy()


def table() -> Table:
    """The coefficients at ``LOG_RATIOS``, a row for each objective and sign of the advantage."""
    records: list[dict[str, Any]] = []
    for name in OBJECTIVES:
        for sign, advantage in SIGNS.items():
            own = coefficients(name, np.array(LOG_RATIOS), advantage)
            values = {f"{x:+g}" if x else "0": round(float(c), 2) for x, c in zip(LOG_RATIOS, own)}
            records.append({"objective": name, "advantage": sign, **values})
    return Table.of("coefficients", "Coefficient of a token by its log-ratio", records)


def figure() -> Figure:
    """A panel for each objective; the dashed line is the ratio itself, plain importance sampling."""
    drawn, grid = axes_grid(3, 3, width=3.2, height=2.3, sharex=True, sharey=True)
    x = np.linspace(-WIDEST, WIDEST, 1201)
    for axes, name in zip(grid.flat, OBJECTIVES):
        panel: Axes = axes
        panel.plot(x, np.exp(x), color="#bbbbbb", linestyle="--", linewidth=1)
        # The one below is wider, so that both can be seen where they agree.
        for (sign, advantage), colour, width in zip(SIGNS.items(), COLOURS, (3.2, 1.3)):
            panel.plot(x, coefficients(name, x, advantage), color=colour, label=sign, linewidth=width)
        panel.set_title(name)
        panel.set_ylim(-0.08, HIGHEST)
    grid[0, 0].legend(loc="upper left")
    drawn.supxlabel("log rho = log pi - log mu", fontsize=9)
    drawn.supylabel("coefficient of A grad log pi", fontsize=9)
    return drawn


@dataclass(frozen=True)
class Options:
    """Where to write."""

    out: Path = Path("runs/coefficients")
    """Folder for coefficients.png and coefficients.csv."""


def main(arguments: Sequence[str]) -> int:
    """Draw the figure and print the table."""
    parsed = options.parse(arguments, Options, __doc__ or "")
    if parsed is None:
        return 0
    own, rest = parsed
    if rest:
        raise UserError(f"{rest[0]!r} is not known: the only option is out=PATH")
    folder, made = own.out.expanduser(), table()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = [write_csv(made, folder).name, "coefficients.png"]
        with matplotlib.rc_context(SETTINGS):
            figure().savefig(folder / files[1], metadata={"Software": None})
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): choose another with out=PATH"
        ) from error
    show(made)
    console.print(f"figure and table: {folder}", soft_wrap=True)
    print(json.dumps({"folder": str(folder), "files": files}))
    return 0


if __name__ == "__main__":
    cli.run(main)
