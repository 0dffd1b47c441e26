"""The report of a run: `report.md`, `report.html`, the plots and the summary table."""

from pathlib import Path
from typing import Any

import numpy as np

from src.core.files import write_text
from src.core.foreign.escape import markdown
from src.exp.compare.beyond import popularity_shift
from src.exp.compare.breakdown import breakdown, group_differences, row_groups, spreads, thirds
from src.exp.compare.comparison import (
    DIFFERENCE,
    LABELS,
    STUDENTS,
    Comparison,
    comparison_tests,
    history_label,
    short_label,
    summary_table,
)
from src.exp.compare.provenance import repeat_command
from src.exp.compare.significance import PairedTest, bootstrap_interval, user_metric
from src.exp.compare.studies import StudyResult
from src.exp.compare.verdict import verdict
from src.exp.report.figures import Plot, write_png
from src.exp.report.pages import MISSING, write_pages
from src.exp.report.plots import (
    main_difference_panel,
    plot_breakdown,
    plot_comparison,
    plot_intervals,
    plot_learning_curves,
)
from src.exp.report.studies import study_table_shown, variants_plot
from src.exp.report.tables import (
    controls_table,
    cost_table,
    facts,
    for_spreadsheets,
    lists_table,
    metrics_table,
    seeds_table,
    settings_table,
    teacher_table,
    tests_table,
    times_table,
)

_SECTIONS = {
    "tests": "Is the difference real?",
    "metrics": "Test metrics",
    "breakdown": "Where it helps",
    "beyond": "Beyond accuracy",
    "training": "Training",
    "studies": "Studies",
    "teacher": "Teacher",
    "cost": "Cost",
    "run": "What was run",
    "repeat": "How to repeat it",
}


def write_report(comparison: Comparison) -> list[Path]:
    """Write `metrics/summary.{csv,md}`, `plots/*.png`, `report.md` and `report.html`.

    Returns:
        The pages, then the plots.
    """
    folder, frame = comparison.folder, summary_table(comparison)
    write_text(folder.root / "metrics" / "summary.csv", for_spreadsheets(frame).to_csv(float_format="%.6f"))
    summary = frame.T.astype(object).rename(index=markdown)  # a metric may have been named by another program
    text = summary.replace({np.nan: None}).to_markdown(floatfmt=".4f", missingval="-")
    write_text(folder.root / "metrics" / "summary.md", text + "\n")
    tests = comparison_tests(comparison)
    plots = _plots(comparison, tests)
    files = {plot.name: folder.plots_dir / f"{plot.name}.png" for plot in plots}
    for plot in plots:
        write_png(plot, files[plot.name])
    context = _context(comparison, tests) | {"plots": {plot.name: plot for plot in plots}}
    return [*write_pages("report", folder.report_file.with_suffix(""), context), *files.values()]


def _plots(comparison: Comparison, tests: dict[str, PairedTest]) -> list[Plot]:
    metrics, metric, means = comparison.settings.metrics, comparison.metric, {}
    for name, runs in comparison.ranks.items():
        _, values = user_metric(runs, metrics.monitor, metrics.masked)
        means[name] = (float(values.mean()), *bootstrap_interval(values))
    # Of the models that were tested on every row; the teacher saw a sample.
    models = {name: runs for name, runs in comparison.ranks.items() if name in (*comparison.references, *STUDENTS)}
    groups = {title: thirds(values) for title, values in row_groups(comparison.dataset).items()}
    tables = {title: breakdown(models, masks, metrics.monitor, metrics.masked) for title, masks in groups.items()}
    halves = {title: spreads(models, masks, metrics.monitor, metrics.masked) for title, masks in groups.items()}
    differences = {}
    if DIFFERENCE in tests:
        pair = (comparison.ranks["distill"], comparison.ranks["baseline"])
        differences = {
            title: group_differences(pair, masks, metrics.monitor, metrics.masked) for title, masks in groups.items()
        }
    histories = {name: source.history_file(name) for name, source in comparison.sources.items()}
    return [
        plot_comparison(comparison.evaluations, sorted(metrics.ks), comparison.ranks),
        plot_intervals(means, tests, metric),
        plot_breakdown(tables, halves, differences, metric),
        plot_learning_curves(histories, metrics.monitor, metric),
        *(variants_plot(study.table, metric=metric, name=_plot_name(study)) for study in comparison.studies),
    ]


def _context(comparison: Comparison, tests: dict[str, PairedTest]) -> dict[str, Any]:
    """What `templates/report_body.j2` names, but for the plots."""
    teacher, lists = _teacher(comparison), lists_table(comparison)
    parts = {"teacher": teacher, "studies": comparison.studies, "beyond": lists}
    absent = {name for name, content in parts.items() if not content}
    return {
        "title": f"{comparison.settings.general.experiment_name}: {comparison.dataset.name}",
        "sections": {name: title for name, title in _SECTIONS.items() if name not in absent},
        "metric": comparison.metric,
        "masked": comparison.settings.metrics.masked,
        "history": history_label(comparison.settings.metrics.masked),
        "verdict": verdict(comparison, tests),
        "difference": main_difference_panel(tests[DIFFERENCE], comparison.metric) if DIFFERENCE in tests else None,
        "tests": tests_table(tests),
        "num_tests": len(tests),
        "controls": controls_table(comparison),
        "seeds": ", ".join(f"{short_label(name)}: {len(runs)}" for name, runs in comparison.seeds.items()),
        "seeds_table": seeds_table(comparison),
        "num_items": comparison.dataset.num_items,
        "metrics": metrics_table(comparison, "metrics"),
        "metrics_masked": metrics_table(comparison, "metrics_masked"),
        "lists": lists,
        "has_diversity": lists is not None and any("diversity" in column for column in lists.columns),
        "list_length": comparison.settings.metrics.list_length,
        "popularity_shift": popularity_shift(comparison),
        "upstream": _upstream(comparison),
        "teacher": teacher,
        "times": times_table(comparison),
        "costs": cost_table(comparison),
        "facts": facts(comparison),
        "changed": settings_table(comparison),
        "commit": comparison.commit,
        "command": repeat_command(comparison.sources),
        "studies": [_study(study, comparison.metric) for study in comparison.studies],
    }


def _study(study: StudyResult, metric: str) -> dict[str, Any]:
    return {
        "title": study.name.replace("_", " ").capitalize(),
        "folder": study.folder,
        "table": study_table_shown(study.table, metric),
        "plot": _plot_name(study),
    }


def _plot_name(study: StudyResult) -> str:
    return f"study_{study.name}"


def _teacher(comparison: Comparison) -> dict[str, Any] | None:
    """The teacher's answers, and on how many rows it was asked."""
    found = comparison.evaluations.get("teacher")
    if found is None or "answers" not in found:  # a teacher that ranks need not answer prompts
        return None
    return {"table": teacher_table(found["answers"]), "rows": found["answers"].get("num_rows", MISSING)}


def _upstream(comparison: Comparison) -> dict[str, str] | None:
    """DLLM2Rec's program and its protocol, which is not ours."""
    found = comparison.evaluations.get("dllm2rec_upstream")
    return {"label": LABELS["dllm2rec_upstream"], "protocol": found.get("protocol", MISSING)} if found else None
