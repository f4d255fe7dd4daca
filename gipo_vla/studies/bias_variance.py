"""Bias and variance of the objectives' gradients, exactly: ``python -m gipo_vla.studies.bias_variance``.

In the start state of a 2 x 2 grid an action is drawn from a behaviour policy mu, and an objective makes of
it a one-sample estimate of the target policy's gradient with respect to one logit, theta(S0, right):

    g(a) = u(log rho(a), A(a)) A(a) (1[a = right] - pi(right)),   rho = pi / mu

u is the objective's coefficient, taken from the very function that training uses. There are four actions,
so the expectation and the variance of g under mu are sums of four terms; nothing is sampled. The true
gradient is E_pi[A grad log pi] = pi(right) A(right), the mean of No-Clip.

What is reported for each of 3 target x 7 behaviour policies and each estimator:

    bias, variance       of one sample
    MSE(n)               bias^2 + variance / n, of the mean of n samples
    signal to noise      mean / standard deviation of one sample, negative where it points the wrong way
    cosine               of the mean gradient over the four logits of S0 to the true one

A single-sample MSE rewards shrinking towards zero, down to an estimator that is always zero and learns
nothing. Hence MSE over n, the zero estimator beside the others, and signal to noise and cosine, which do not
change when an estimator is scaled (as they should not: Adam undoes a scale).

Everything here is one state, exact advantages, and cases chosen by hand; it says what the estimators trade,
not which of them trains best.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gipo_envs.errors import UserError
from gipo_vla import cli, options
from gipo_vla.reporting.table import show, write_csv
from gipo_vla.studies import bias_variance_figures
from gipo_vla.studies.bias_variance_tables import (
    best_table,
    cases_table,
    estimators_table,
    finding,
    for_console,
)
from gipo_vla.studies.gradient_moments import BEHAVIOURS, SAMPLES, TARGETS, Moments, all_moments
from gipo_vla.telemetry.console import console


@dataclass(frozen=True)
class Options:
    """Where to write."""

    out: Path = Path("runs/bias_variance")
    """Folder for the PNG and CSV files."""


def run(folder: Path, results: Sequence[Moments]) -> dict[str, object]:
    """Write everything; returns the line for programs."""
    best = best_table(results)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tables = (cases_table(results), estimators_table(results), best)
        files = [write_csv(table, folder).name for table in tables]
        files += bias_variance_figures.write(results, folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): choose another with out=PATH"
        ) from error
    return {
        "folder": str(folder),
        "files": files,
        "cases": len(TARGETS) * len(BEHAVIOURS),
        "off_policy_cases": sum(not one.on_policy for one in results if one.estimator == "zero"),
        "least_mse": {str(row[0]): dict(zip(map(str, SAMPLES), row[1:])) for row in best.rows},
        "finding": finding(results),
    }


def main(arguments: Sequence[str]) -> int:
    """Run the study and print what it found."""
    parsed = options.parse(arguments, Options, __doc__ or "")
    if parsed is None:
        return 0
    own, rest = parsed
    if rest:
        raise UserError(f"{rest[0]!r} is not known: the only option is out=PATH")
    began = time.perf_counter()
    folder, results = own.out.expanduser(), all_moments()
    summary = run(folder, results)
    show(for_console(results))
    for line in finding(results):
        console.print(f"- {line}", soft_wrap=True)
    console.print(f"figures and tables: {folder}", soft_wrap=True)
    print(json.dumps(summary | {"seconds": round(time.perf_counter() - began, 2)}))
    return 0


if __name__ == "__main__":
    cli.run(main)
