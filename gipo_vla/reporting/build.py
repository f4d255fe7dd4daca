"""Puts a report together: read, compare, draw, write."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from matplotlib.figure import Figure

from gipo_envs.errors import UserError
from gipo_vla.reporting import (
    age_figures,
    curve_figures,
    curves,
    graph_figures,
    results,
    snapshot_figures,
    style,
    summary,
    table,
    task_figures,
)
from gipo_vla.reporting.comparison import Comparison, compare
from gipo_vla.reporting.page import Image, Page, Section, render
from gipo_vla.reporting.runs import read_runs
from gipo_vla.reporting.style import Layout
from gipo_vla.reporting.summary import Score
from gipo_vla.reporting.table import Table

INTERVALS = (
    "Intervals are 95 % percentile bootstrap intervals that resample seeds within each task; with a single "
    "seed there is none, and with three they are known to be too narrow."
)

FLOOR = (
    "Dotted: the numerical floor, which is the 99th percentile of |log ρ| between acting and training with "
    "the same weights; nothing at or below it is staleness"
)


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
    folders: Sequence[Path], destination: Path | None = None, score: Score = "success_once"
) -> Report:
    """Report on all runs in ``folders``.

    Args:
        folders: run folders, or folders that contain some at any depth.
        destination: of everything. None: ``report/`` in the first folder; when that is a run folder and
            the only one, report.html goes beside its metrics.
        score: what runs are compared by; all but ``success_once`` need an evaluation of every run.

    Raises:
        UserError: there is nothing to report on, or nowhere to write.
    """
    found, remarks = read_runs(folders)
    comparison = compare(found, remarks, score)
    parts = destination or folders[0] / "report"
    alone = destination is None and len(folders) == 1 and (folders[0] / "metrics.jsonl").exists()
    page_path = (folders[0] if alone else parts) / "report.html"
    try:
        parts.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(style.SETTINGS):
            page = _page(comparison, parts, folders[0] / "videos" if alone else None)
        _replace(page_path, render(page))
    except OSError as error:
        raise UserError(
            f"{parts} cannot be written ({error.strerror}): choose another with out=PATH"
        ) from error
    return Report(page_path, comparison, results.configurations(comparison))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class _Parts:
    """Writes figures and tables into the report's folder as they are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def image(self, name: str, figure: Figure | None, caption: str) -> list[Image]:
        """The figure as ``name.png``; nothing where there was nothing to draw."""
        if figure is None:
            return []
        path = self.folder / f"{name}.png"
        # Without the date and version that matplotlib would write: same runs, same bytes.
        figure.savefig(path, metadata={"Software": None})
        return [Image(path, caption)]

    def table(self, made: Table | None) -> list[Table]:
        """The table as CSV."""
        if made is None or not made.rows:
            return []
        table.write_csv(made, self.folder)
        return [made]


def _page(comparison: Comparison, folder: Path, videos: Path | None) -> Page:
    parts = _Parts(folder)
    layout = style.layout(comparison)
    made = curves.aggregate(comparison)
    parts.table(curves.table(made))
    sections = [
        _results(comparison, parts, layout),
        _videos(videos),
        _learning(comparison, parts, layout, made),
        _sigma_capacity(comparison, parts),
        _per_task(comparison, parts, layout),
        _staleness(comparison, parts, layout, made),
        Section(
            "Health of training",
            images=parts.image(
                "health",
                curve_figures.health_curves(comparison, layout, made),
                "Entropy that collapses, explained variance that stays at or below 0, and gradient norms "
                "that jump are the usual signs of trouble.",
            ),
        ),
        _credit(comparison, parts, layout, made),
        _appendix(comparison, parts),
    ]
    return Page(
        _title(comparison), _facts(comparison), comparison.remarks, [s for s in sections if _holds(s)]
    )


def _holds(section: Section) -> bool:
    return bool(section.images or section.links or section.tables or section.folded or section.verbatim)


def _title(comparison: Comparison) -> str:
    if comparison.single:
        run = comparison.runs[0]
        return (
            f"{run.config.get('experiment', run.name)}: {comparison.configurations[0].label}, seed {run.seed}"
        )
    experiments = sorted({str(run.config.get("experiment", "runs")) for run in comparison.runs})
    return f"{', '.join(experiments[:3])}: {len(comparison.configurations)} configurations compared"


def _facts(comparison: Comparison) -> str:
    if comparison.single:
        run = comparison.runs[0]
        lag, spread = (
            summary.settled_mean(run, f"staleness/{name}")
            for name in ("lag_iterations_mean", "p95_abs_log_ratio")
        )
        known = lag is not None and spread is not None
        numbers = f" (mean lag {lag:.1f} iterations, P95 |log ρ| {spread:.2f})" if known else ""
        return (
            f"{', '.join(run.tasks)}; {run.iterations:,} iterations, "
            f"{run.rows[-1]['env_steps']:,} env steps; regime: {summary.regime(lag, spread)}{numbers}"
        )
    varied = ", ".join(comparison.factors) or "nothing but seed and task"
    return (
        f"{_count(comparison.runs, 'run')}, {_count(comparison.tasks, 'task')}, "
        f"{_count({str(run.seed) for run in comparison.runs}, 'seed')}; varied: {varied}"
    )


def _count(things: Sized, noun: str) -> str:
    return f"{len(things):,} {noun}{'' if len(things) == 1 else 's'}"


def _score_text(comparison: Comparison) -> str:
    if comparison.source == "evaluation":
        return (
            f"{comparison.noun.capitalize()} is that of held-out initial states at the end of training "
            "(evaluation.json). Greedy actions can hide that a policy is nearly uniform: compare the sampled "
            "columns."
        )
    return "Success is that of the last 100 training episodes, for want of an evaluation.json in every run."


def _results(comparison: Comparison, parts: _Parts, layout: Layout) -> Section:
    headline = parts.table(results.configurations(comparison))
    if comparison.single:
        return Section(
            "Result",
            "Success with 95 % Wilson intervals over episodes.",
            tables=parts.table(results.evaluation(comparison.runs[0])) or headline,
        )
    pairs = [
        *parts.table(results.differences(comparison)),
        *parts.table(results.capacity_differences(comparison)),
    ]
    return Section(
        "Results",
        f"{_score_text(comparison)} IQM is the interquartile mean over tasks and seeds. {INTERVALS} "
        "Success over training is the mean over env steps of the success of the last 100 episodes. A regime "
        f"is stale when the mean lag is at least {summary.STALE_LAG_ITERATIONS:g} iterations and P95 |log ρ| "
        f"at least {summary.STALE_P95_ABS_LOG_RATIO:g}, both over the second half of training.",
        parts.image("scores", snapshot_figures.scores(comparison, layout), ""),
        tables=[results.readable(comparison)],
        folded=[*headline, *parts.table(results.held_out(comparison)), *pairs],
    )


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


def _learning(comparison: Comparison, parts: _Parts, layout: Layout, made: curve_figures.Curves) -> Section:
    caption = "" if comparison.single else f"Interquartile mean over tasks and seeds. {INTERVALS}"
    return Section(
        "Learning curves",
        images=[
            *parts.image("learning_curves", curve_figures.learning_curves(comparison, layout, made), caption),
            *parts.image(
                "held_out_curves",
                curve_figures.held_out_curves(comparison, layout, made),
                "The same on held-out initial states.",
            ),
        ],
    )


def _sigma_capacity(comparison: Comparison, parts: _Parts) -> Section:
    if not results.has_sigma_and_capacity(comparison):
        return Section("")
    return Section(
        "sigma x capacity",
        images=parts.image(
            "sigma_capacity",
            snapshot_figures.sigma_capacity(comparison),
            "Interquartile mean of success and its interval. * marks a stale regime.",
        ),
        folded=parts.table(results.sigma_capacity(comparison)),
    )


def _per_task(comparison: Comparison, parts: _Parts, layout: Layout) -> Section:
    made = parts.table(results.success_per_task(comparison))
    if len(comparison.tasks) < 2:  # the headline has said it
        return Section("")
    images = [
        *parts.image("success_per_task", snapshot_figures.success_per_task(comparison, layout), ""),
        *parts.image(
            "task_curves", task_figures.success_of_each_task(comparison, layout), "Training episodes."
        ),
    ]
    return Section("Success per task", images=images, folded=made)


def _staleness(comparison: Comparison, parts: _Parts, layout: Layout, made: curve_figures.Curves) -> Section:
    single = comparison.single
    known = summary.numerical_floor(comparison.runs)
    floor = "" if known is None else f"{FLOOR} ({known:.0e})."
    return Section(
        "Staleness",
        "ρ is the ratio of the learner's probability of a token to that of the policy that acted. New "
        "samples are the youngest tenth of an update by lag, old ones the oldest half. The effective sample "
        "size is the share of samples that count: 1 where all count alike. Single numbers are means over the "
        "second half of training; greatest lags are the greatest there.",
        [
            *parts.image(
                "staleness",
                curve_figures.staleness_curves(comparison, layout, made),
                f"Over training. {floor}",
            ),
            *parts.image(
                "effective_sample_size",
                snapshot_figures.effective_sample_size(comparison, layout),
                "How far the policy has moved since old samples were drawn, against what they still count "
                "for. A dot is an iteration of the second half of training, a large marker the median. "
                f"Dashed: the 0.5 from which data count as stale. {floor}",
            ),
            *parts.image(
                "fractions_by_age",
                age_figures.fractions_by_age(comparison, layout),
                "Samples that teach nothing (clipped, or underflowed), and those damped below a thousandth: "
                "for each fifth of an update's samples, from the youngest to the oldest.",
            ),
            *parts.image(
                "lag_histogram",
                age_figures.lag_histogram(comparison, layout),
                "How old the samples of an update are; every step holds a tenth of them.",
            ),
            *parts.image(
                "lag",
                snapshot_figures.lag(comparison),
                "Lag of the samples: mean, 95th percentile and greatest. Dashed: 20 iterations.",
            ),
        ],
        tables=parts.table(results.age(comparison)) if single else [],
        folded=[
            *([] if single else parts.table(results.age(comparison))),
            *parts.table(results.lag(comparison)),
        ],
    )


def _credit(comparison: Comparison, parts: _Parts, layout: Layout, made: curve_figures.Curves) -> Section:
    return Section(
        "Credit",
        images=[
            *parts.image(
                "state_graph",
                graph_figures.state_graphs(comparison),
                "States that the rollouts of one group share, at the mean position of the hand; edges are "
                "observed steps, wider the more often they were taken. What several rollouts passed through "
                "is where GraphGPO compares their steps.",
            ),
            *parts.image(
                "credit",
                curve_figures.credit_curves(comparison, layout, made),
                "Means over the groups that closed in an iteration. Below the least merge ratio a group gets "
                "episode advantages alone. A belief that knows nothing has a Brier score of p(1 - p) at a "
                "success rate p.",
            ),
        ],
    )


def _appendix(comparison: Comparison, parts: _Parts) -> Section:
    runs = parts.table(results.runs(comparison))
    if comparison.single:
        settings: dict[str, Any] = comparison.runs[0].settings
        return Section("Settings", verbatim=yaml.safe_dump(settings, sort_keys=False))
    return Section("Runs", folded=runs)
