"""The page of a study's or a sweep's results: one table with intervals, one plot, one HTML."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from hydra.core.hydra_config import HydraConfig

from src.core.git_info import git_commit
from src.exp.compare.comparison import LABELS, metric_label
from src.exp.compare.significance import Ranks
from src.exp.report.figures import Plot
from src.exp.report.studies import curve_plot
from src.exp.report.tables import valid_sample
from src.exp.stage.stage import Stage
from src.exp.study.config import BASELINE, StudyConfig
from src.exp.study.pages import Study, study_page
from src.exp.study.plan import Variant
from src.exp.study.results import Result, compared_with, require_metric
from src.exp.study.table import study_table

X, SERIES = "x", "series"


def write_study(
    stage: Stage,
    found: Sequence[Variant],
    results: Mapping[str, Sequence[Result]],
    beside: Mapping[str, Ranks],
    *,
    titles: str = "",
) -> list[Path]:
    """Write `metrics/<name>.{csv,md,html,png}` of a study; returns the files.

    Args:
        results: the runs of each variant, one for each seed.
        beside: what needs no student, by its name for people.
        titles: how the reference among it that reads titles was set.
    """
    config, metrics = stage.settings.study, stage.settings.metrics
    require_metric(results, metrics)
    metric = metric_label(metrics.monitor, metrics.masked)
    ranks = {name: [run.ranks for run in runs] for name, runs in results.items()}
    table = study_table(
        {**ranks, **{name: [values] for name, values in beside.items()}},
        metric=metrics.monitor,
        masked=metrics.masked,
        reference=BASELINE,
        validation={name: [run.record.value or 0.0 for run in runs] for name, runs in results.items()},
        unlike={name: compared_with(runs, results[BASELINE]) for name, runs in results.items()},
        leader=config.leader,
    )
    study = Study(
        name=config.name,
        title=f"{config.name.replace('_', ' ').capitalize()}: {stage.dataset.name}",
        metric=metric,
        table=table,
        reference=BASELINE,
        leader=config.leader or "",
        plot=_curve(config, found, table, metric),
        about=_about(stage, beside),
        facts={
            "dataset": f"{stage.dataset.name}, {stage.dataset.num_items} items, {len(stage.dataset.test)} test rows",
            "student": stage.settings.student.name,
            **valid_sample(stage.settings.student, stage.dataset),
            **({LABELS["markov_titles"]: titles} if titles else {}),
            "seeds": ", ".join(map(str, config.seeds)),
            "commit": git_commit(),
            "runs": f"{stage.folder.root.name}/runs/<variant>/seed_<seed>",
        },
        command=shlex.join(
            ["poetry", "run", "python", "-m", "src.exp.run_study", *map(str, HydraConfig.get().overrides.task)]
        ),
    )
    return study_page(study, stage.folder.root / "metrics")


def _about(stage: Stage, beside: Mapping[str, Ranks]) -> list[str]:
    about = [
        stage.settings.study.question,
        "Differences are to the baseline of the same seeds: seeds averaged first, then paired over users. The interval "
        "covers the choice of users, the standard deviation the choice of seeds.",
    ]
    if "teacher" in beside:
        about.append("The teacher ranks its candidates only, on the users that it was tested on.")
    return about


def _curve(config: StudyConfig, found: Sequence[Variant], table: pd.DataFrame, metric: str) -> Plot | None:
    """The metric against the grid's last axis; None where the study wants the plot of its points."""
    if config.plot != "curve":
        return None
    *others, last = config.grid
    lines: dict[str, dict[str, object]] = {BASELINE: {X: None, SERIES: None}}
    lines |= {name: {X: place, SERIES: None} for name, place in config.ends.items()}
    for variant in found:
        if variant.place:
            series = ", ".join(variant.place[axis] for axis in others) or last
            lines[variant.name] = {X: float(variant.place[last]), SERIES: series}
    points = pd.DataFrame.from_dict(lines, orient="index").join(table)
    return curve_plot(
        points, x=X, series=SERIES, metric=metric, name=config.name, level=BASELINE, x_label=last.replace("_", " ")
    )
