"""Puts a report together: read, compare, draw, write."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import yaml
from matplotlib.figure import Figure

from gipo_envs.errors import UserError
from gipo_vla import foreign
from gipo_vla.reporting import (
    curve_figures,
    curves,
    graph_figures,
    results,
    snapshot_figures,
    style,
    summary,
    table,
)
from gipo_vla.reporting.comparison import Comparison, compare
from gipo_vla.reporting.page import Image, Section, render
from gipo_vla.reporting.runs import read_runs
from gipo_vla.reporting.summary import HeldOutScore
from gipo_vla.reporting.table import Table
from gipo_vla.telemetry.metrics import replace_file

INTERVALS = (
    "Intervals are 95 % percentile bootstrap intervals that resample seeds within each task; with a single "
    "seed there is none, and with three they are known to be too narrow."
)
FLOOR = (
    "Dotted: the numerical floor, which is the 99th percentile of |log ρ| between acting and training with "
    "the same weights; nothing at or below it is staleness"
)
HELD_OUT = (
    "is that of held-out initial states at the end of training (evaluation.json). Greedy actions can hide "
    "that a policy is nearly uniform: compare the sampled columns."
)
TRAINING = "Success is that of the last 100 training episodes, for want of an evaluation.json in every run."
RESULTS = (
    f"IQM is the interquartile mean over tasks and seeds. {INTERVALS} Success over training is the mean over "
    "env steps of the success of the last 100 episodes. A regime is stale when the mean lag is at least "
    f"{summary.STALE_LAG_ITERATIONS:g} iterations and P95 |log ρ| at least "
    f"{summary.STALE_P95_ABS_LOG_RATIO:g}, both over the second half of training."
)
STALENESS = (
    "ρ is the ratio of the learner's probability of a token to that of the policy that acted. New samples "
    "are the youngest tenth of an update by lag, old ones the oldest half. The effective sample size is the "
    "share of samples that count: 1 where all count alike. Single numbers are means over the second half of "
    "training; greatest lags are the greatest there."
)
CAPTIONS = {
    "learning_curves": f"Interquartile mean over tasks and seeds. {INTERVALS}",
    "held_out_curves": "The same on held-out initial states.",
    "sigma_capacity": "Interquartile mean of success and its interval. * marks a stale regime.",
    "task_curves": "Training episodes.",
    "staleness": "Over training. ",
    "effective_sample_size": "How far the policy has moved since old samples were drawn, against what they "
    "still count for. A dot is an iteration of the second half of training, a large marker the median. "
    "Dashed: the 0.5 from which data count as stale. ",
    "fractions_by_age": "Samples that teach nothing (clipped, or underflowed), and those damped below a "
    "thousandth: for each fifth of an update's samples, from the youngest to the oldest.",
    "lag_histogram": "How old the samples of an update are; every step holds a tenth of them.",
    "lag": "Lag of the samples: mean, 95th percentile and greatest. Dashed: 20 iterations.",
    "health": "Entropy that collapses, explained variance that stays at or below 0, and gradient norms that "
    "jump are the usual signs of trouble.",
    "state_graph": "States that the rollouts of one group share, at the mean position of the hand; edges are "
    "observed steps, wider the more often they were taken. What several rollouts passed through is where "
    "GraphGPO compares their steps.",
    "credit": "Means over the groups that closed in an iteration. Below the least merge ratio a group gets "
    "episode advantages alone. A belief that knows nothing has a Brier score of p(1 - p) at a success rate "
    "p.",
}
"""What stands under the figures, by their names."""


@dataclass(frozen=True)
class Report:
    """What was written."""

    page: Path
    comparison: Comparison
    headline: Table
    """A row for each configuration."""


def write_run_report(run_folder: Path) -> Path:
    """Report on one run: ``report.html`` in its folder, figures and tables in ``report/``."""
    return write_report([run_folder]).page


def write_report(
    folders: Sequence[Path], destination: Path | None = None, score: HeldOutScore | None = None
) -> Report:
    """Report on all runs in ``folders``.

    Args:
        folders: run folders, or folders that contain some at any depth.
        destination: of everything. None: ``report/`` in the first folder; when that is a run folder and
            the only one, report.html goes beside its metrics.
        score: what runs are compared by; all but ``success_once`` need an evaluation of every run. None: the
            one that the sweep in these folders was started with, else ``success_once``.

    Raises:
        UserError: there is nothing to report on, or nowhere to write, or folders of sweeps with other scores.
    """
    runs, remarks = read_runs(folders)
    chosen = sorted({known for folder in folders if (known := summary.recorded_score(folder))})
    if score is None and len(chosen) > 1:
        raise UserError(
            f"the sweeps in these folders were started with {' and '.join(chosen)}: say score=NAME"
        )
    if score is not None and chosen not in ([], [score]):
        remarks.append(f"by score={score}, though the sweep was started with score={', '.join(chosen)}")
    comparison = compare(runs, remarks, score or (chosen[0] if chosen else "success_once"))
    parts = destination or folders[0] / "report"
    alone = destination is None and len(folders) == 1 and (folders[0] / "metrics.jsonl").exists()
    page = (folders[0] if alone else parts) / "report.html"
    if destination is None and os.path.lexists(parts):
        foreign.check_folder(parts.parent)
    try:
        parts.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(style.SETTINGS):
            sections = _Sections(comparison, parts).made(folders[0] / "videos" if alone else None)
        replace_file(page, render(_title(comparison), _facts(comparison), comparison.remarks, sections))
    except OSError as error:
        raise UserError(
            f"{parts} cannot be written ({error.strerror}): choose another with out=PATH"
        ) from error
    return Report(page, comparison, results.configurations(comparison))


class _Sections:
    """The sections of a page; writes figures and tables into the report's folder as they are made."""

    def __init__(self, comparison: Comparison, folder: Path) -> None:
        self.comparison, self.folder = comparison, folder
        self.layout = style.layout(comparison)
        self.curves = curves.aggregate(comparison)
        floor = summary.numerical_floor(comparison.runs)
        told = "" if floor is None else f"{FLOOR} ({floor:.0e})."
        self.captions = CAPTIONS | {
            "learning_curves": "" if comparison.single else CAPTIONS["learning_curves"],
            "staleness": CAPTIONS["staleness"] + told,
            "effective_sample_size": CAPTIONS["effective_sample_size"] + told,
        }

    def made(self, videos: Path | None) -> list[Section]:
        """All of them, in their order."""
        comparison, layout = self.comparison, self.layout
        self.tables(curves.table(self.curves))
        return [
            self.results(),
            _videos(videos),
            Section(
                "Learning curves",
                images=self.images(
                    learning_curves=curve_figures.learning_curves(comparison, layout, self.curves),
                    held_out_curves=curve_figures.held_out_curves(comparison, layout, self.curves),
                ),
            ),
            Section(
                "sigma x capacity",
                images=self.images(sigma_capacity=snapshot_figures.sigma_capacity(comparison)),
                folded=self.tables(results.sigma_capacity(comparison)),
            ),
            self.per_task(),
            self.staleness(),
            Section("Health of training", images=self.images(health=self.logged(curves.HEALTH))),
            Section(
                "Credit",
                images=self.images(
                    state_graph=graph_figures.state_graphs(comparison), credit=self.logged(curves.CREDIT)
                ),
            ),
            self.appendix(),
        ]

    def images(self, **figures: Figure | None) -> list[Image]:
        """Those with something to draw, as PNG under their names."""
        images = []
        for name, figure in figures.items():
            if figure is not None:
                path = self.folder / f"{name}.png"
                # Without the date and version that matplotlib would write: same runs, same bytes.
                drawn = io.BytesIO()
                figure.savefig(drawn, metadata={"Software": None})
                replace_file(path, drawn.getvalue())
                images.append(Image(path, self.captions.get(name, "")))
        return images

    def tables(self, *made: Table | None) -> list[Table]:
        """Those that have rows, as CSV."""
        kept = [one for one in made if one is not None and one.rows]
        for one in kept:
            table.write_csv(one, self.folder)
        return kept

    def logged(self, group: Collection[str]) -> Figure | None:
        return curve_figures.logged(self.layout, self.curves, group)

    def results(self) -> Section:
        comparison = self.comparison
        headline = self.tables(results.configurations(comparison))
        if comparison.single:
            tables = self.tables(results.evaluation(comparison.runs[0])) or headline
            return Section("Result", "Success with 95 % Wilson intervals over episodes.", tables=tables)
        held_out = comparison.source == "evaluation"
        score = f"{comparison.noun.capitalize()} {HELD_OUT}" if held_out else TRAINING
        others = self.tables(
            results.held_out(comparison),
            results.differences(comparison),
            results.capacity_differences(comparison),
        )
        return Section(
            "Results",
            f"{score} {RESULTS}",
            self.images(scores=snapshot_figures.scores(comparison, self.layout)),
            tables=[results.readable(comparison)],
            folded=headline + others,
        )

    def per_task(self) -> Section:
        comparison, layout = self.comparison, self.layout
        tables = self.tables(results.success_per_task(comparison))
        if len(comparison.tasks) < 2:  # the headline has said it
            return Section("")
        images = self.images(
            success_per_task=snapshot_figures.success_per_task(comparison, layout),
            task_curves=curve_figures.success_of_each_task(comparison, layout),
        )
        return Section("Success per task", images=images, folded=tables)

    def staleness(self) -> Section:
        comparison, layout = self.comparison, self.layout
        images = self.images(
            staleness=self.logged(curves.STALENESS),
            effective_sample_size=snapshot_figures.effective_sample_size(comparison, layout),
            fractions_by_age=snapshot_figures.fractions_by_age(layout),
            lag_histogram=snapshot_figures.lag_histogram(layout),
            lag=snapshot_figures.lag(comparison),
        )
        by_age, lag = self.tables(results.age(comparison)), self.tables(results.lag(comparison))
        if comparison.single:
            return Section("Staleness", STALENESS, images, tables=by_age, folded=lag)
        return Section("Staleness", STALENESS, images, folded=by_age + lag)

    def appendix(self) -> Section:
        runs = self.tables(results.runs(self.comparison))
        if not self.comparison.single:
            return Section("Runs", folded=runs)
        settings = self.comparison.runs[0].settings
        return Section("Settings", verbatim=yaml.safe_dump(settings, sort_keys=False))


def _videos(folder: Path | None) -> Section:
    """What a run's own page shows of its videos: the contact sheet, and where they are."""
    found = sorted(folder.glob("*.mp4")) if folder is not None else []
    if folder is None or not found:
        return Section("")
    sheet = folder / "before_and_after.png"
    caption = "A row is one held-out initial state: left the policy as it started, right the trained one."
    return Section(
        "Before and after" if sheet.exists() else "Videos",
        images=[Image(sheet, caption)] if sheet.exists() else [],
        links=[f"{folder.name}/{path.name}" for path in found],
    )


def _title(comparison: Comparison) -> str:
    if comparison.single:
        run = comparison.runs[0]
        name = run.config.get("experiment", run.name)
        return f"{name}: {comparison.configurations[0].label}, seed {run.seed}"
    experiments = sorted({str(run.config.get("experiment", "runs")) for run in comparison.runs})
    return f"{', '.join(experiments[:3])}: {len(comparison.configurations)} configurations compared"


def _facts(comparison: Comparison) -> str:
    if not comparison.single:
        seeds = {str(run.seed) for run in comparison.runs}
        return (
            f"{_count(comparison.runs, 'run')}, {_count(comparison.tasks, 'task')}, {_count(seeds, 'seed')}; "
            f"varied: {', '.join(comparison.factors) or 'nothing but seed and task'}"
        )
    run = comparison.runs[0]
    lag = summary.settled_mean(run, "staleness/lag_iterations_mean")
    spread = summary.settled_mean(run, "staleness/p95_abs_log_ratio")
    known = lag is not None and spread is not None
    numbers = f" (mean lag {lag:.1f} iterations, P95 |log ρ| {spread:.2f})" if known else ""
    return (
        f"{', '.join(run.tasks)}; {run.iterations:,} iterations, {run.rows[-1]['env_steps']:,} env steps; "
        f"regime: {summary.regime(lag, spread)}{numbers}"
    )


def _count(things: Sized, noun: str) -> str:
    return f"{len(things):,} {noun}{'' if len(things) == 1 else 's'}"
