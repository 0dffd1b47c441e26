"""The tables of a run's report, as text by column."""

import os
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import pandas as pd
import torch

from src.core.data_utils import SequenceDataset
from src.core.foreign.escape import csv_cell
from src.core.foreign.typed import read_typed
from src.exp.compare.comparison import CONTROLS, LABELS, Comparison, metric_label
from src.exp.compare.provenance import changed_settings
from src.exp.compare.significance import PairedTest
from src.exp.report.pages import MISSING, Table
from src.student.config import StudentConfig
from src.student.cost import device_name

_MEASURES = {
    "hr@1_all": "HR@1 among the candidates (correct / all)",
    "hr@1": "HR@1 of the valid answers (correct / valid)",
    "valid_ratio": "ValidRatio",
    "hr@1_likelihood": "HR@1 of the likeliest candidate",
}
Value = TypeVar("Value")
_STEPS = {
    "teacher_train_time_total": "training the teacher",
    "distill_teacher_export_time": "exporting its knowledge",
    "student_baseline_train_time": "training the baseline student",
    "distill_student_train_time": "training the distilled student",
}


def for_spreadsheets(frame: pd.DataFrame) -> pd.DataFrame:
    """A table with its text, headings included, made harmless for programs that calculate what begins with `=`."""

    def safe(value: Any) -> Any:
        return csv_cell(value) if isinstance(value, str) else value

    harmless = frame.map(safe).rename(index=safe, columns=safe)
    return harmless.rename_axis(index=safe)


def decimals(frame: pd.DataFrame, first: str) -> Table:
    """A table of values with four decimals; what a line lacks is a dash.

    Args:
        first: heading of the column that holds the frame's index.
    """
    rows = [[str(name), *(MISSING if pd.isna(v) else f"{v:.4f}" for v in line)] for name, line in frame.iterrows()]
    columns = [str(column) for column in frame.columns]
    return Table(columns=[first, *columns], rows=rows, numbers=columns)


def controls_table(comparison: Comparison) -> Table | None:
    """The distilled student against those of the control teachers; None where none was trained."""
    controls = comparison.controls or {}
    return tests_table({f"distilled - {CONTROLS[name]}": test for name, test in controls.items()}) if controls else None


def tests_table(tests: dict[str, PairedTest]) -> Table:
    columns = ["comparison", "difference", "95 % interval", "p", "users", "verdict"]
    rows = [
        [n, f"{t.difference:+.4f}", f"{t.low:+.4f} to {t.high:+.4f}", f"{t.p_value:.3g}", str(t.num_users), t.verdict]
        for n, t in tests.items()
    ]
    return Table(columns=columns, rows=rows, numbers=columns[1:5])


def seeds_table(comparison: Comparison) -> Table | None:
    """Mean and standard deviation over seeds; None where no student has several."""
    if max(map(len, comparison.seeds.values())) == 1:
        return None
    columns = {}
    for student, runs in comparison.seeds.items():
        frame = comparison.seed_metrics(student)
        metrics = [name for name in map(str, frame) if not name.startswith("hit_ratio")]
        mean_sd = {metric_label(name): f"{frame[name].mean():.4f} ± {frame[name].std():.4f}" for name in metrics}
        columns[f"{LABELS[student]}, {len(runs)} seeds"] = mean_sd
    names = list(dict.fromkeys(name for values in columns.values() for name in values))
    rows = [[name, *(values.get(name, MISSING) for values in columns.values())] for name in names]
    return Table(columns=["metric", *columns], rows=rows, numbers=list(columns))


def metrics_table(comparison: Comparison, part: str) -> Table:
    """Models down, metrics across; hit ratio is left out, being the recall of one target.

    Args:
        part: `metrics` or `metrics_masked`.
    """
    frame = pd.DataFrame({LABELS[name]: e[part] for name, e in comparison.evaluations.items()})
    frame = frame.loc[[name for name in frame.index if not name.startswith("hit_ratio")]]
    return decimals(frame.rename(index=metric_label).T, "model")


def lists_table(comparison: Comparison) -> Table | None:
    """Metrics beyond accuracy of the ranking that decides, models down; None where no evaluation has any."""
    part = comparison.settings.metrics.part
    found = {LABELS[name]: e.get("beyond_accuracy", {}).get(part) for name, e in comparison.evaluations.items()}
    found = {label: metrics for label, metrics in found.items() if metrics}
    return decimals(pd.DataFrame(found).rename(index=metric_label).T, "model") if found else None


def teacher_table(answers: dict[str, Any]) -> Table:
    """What the teacher answered: each measure with its interval."""
    rows = [
        [title, f"{answers[key]:.4f}", f"{answers[key + '_low']:.4f} to {answers[key + '_high']:.4f}"]
        for key, title in _MEASURES.items()
        if {key, f"{key}_low", f"{key}_high"} <= answers.keys()  # versions before had fewer
    ]
    columns = ["measure on the test rows", "value", "95 % interval"]
    return Table(columns=columns, rows=rows, numbers=columns[1:])


def times_table(comparison: Comparison) -> Table | None:
    """Seconds of each step; None where none were recorded."""
    seconds = read_times([run.time_file for run in _folders(comparison)])
    if not seconds:
        return None
    rows = [[_STEPS.get(name, name.replace("_", " ")), f"{value:.1f}"] for name, value in seconds.items()]
    return Table(columns=["step", "seconds"], rows=rows, numbers=["seconds"])


def cost_table(comparison: Comparison) -> Table:
    """Size and latency of each model."""
    costs = read_costs([*(run.cost_file for run in _folders(comparison)), comparison.folder.cost_file])
    columns = ["model", "parameters", "trained", "ms per user", "users timed", "on"]
    rows = [
        [
            LABELS[name],
            f"{cost['parameters']:,}",
            f"{cost['trained_parameters']:,}",
            f"{cost['latency_ms']:.2f}",
            str(cost["latency_users"]),
            cost["latency_device"],
        ]
        for name, cost in costs.items()
    ]
    return Table(columns=columns, rows=rows, numbers=columns[1:5])


def _folders(comparison: Comparison) -> list[Any]:
    """The different run folders that models came from."""
    return list({run.root: run for run in comparison.sources.values()}.values())


class Cost(TypedDict):
    """What `src.student.cost` measures of a model."""

    parameters: int
    trained_parameters: int
    latency_ms: float
    latency_users: int
    latency_device: str


def read_times(files: list[Path]) -> dict[str, float]:
    """Seconds by step, those of later files before those of earlier ones.

    Raises:
        UserError: a file is damaged.
    """
    return _merged(files, dict[str, float])


def read_costs(files: list[Path]) -> dict[str, Cost]:
    """Costs by model, as `read_times`."""
    costs = _merged(files, dict[str, Cost])
    return {name: cost for name, cost in costs.items() if name in LABELS}


def _merged(files: list[Path], kind: type[dict[str, Value]]) -> dict[str, Value]:
    advice = "delete it, the report does without"
    parts = [read_typed(file, kind, advice) for file in files if file.is_file()]
    return {name: value for part in parts for name, value in part.items()}


def facts(comparison: Comparison) -> dict[str, str]:
    """What was run, where, and from what."""
    dataset, student = comparison.dataset, comparison.settings.student
    return {
        "dataset": f"{dataset.name}, {dataset.num_items} items; rows: {len(dataset.train)} train, "
        f"{len(dataset.valid)} validation, {len(dataset.test)} test",
        **valid_sample(student, dataset),
        "dataset fingerprint": dataset.fingerprint[:16],
        "student": f"{student.name}, {student.emb_size} dimensions",
        **({LABELS["markov_titles"]: comparison.titles} if comparison.titles else {}),
        "commit": comparison.commit,
        "hardware": f"{device_name(comparison.device)}, {os.cpu_count()} cores, PyTorch {torch.__version__}",
        **{f"{LABELS[name]} from": _origin(comparison, name) for name in comparison.sources},
    }


def valid_sample(student: StudentConfig, dataset: SequenceDataset) -> dict[str, str]:
    """What validation numbers are of, where that is not all rows."""
    sample = student.valid_sample(len(dataset.valid))
    return {"validation on": sample} if sample else {}


def _origin(comparison: Comparison, model: str) -> str:
    root = comparison.sources[model].root
    others = ", ".join(str(evaluation["seed"]) for evaluation in comparison.seeds.get(model, [])[1:])
    text = f"{root.parent.name}/{root.name}, seed {comparison.evaluations[model]['seed']}"
    return text + (f"; further seeds: {others}" if others else "")


def settings_table(comparison: Comparison) -> Table | None:
    """Settings that are not the defaults, and which models had them, where not all did; None where there are none."""
    models: dict[tuple[str, ...], list[str]] = {}
    for name, source in comparison.sources.items():
        for key, (default, value) in changed_settings(source, name).items():
            texts = ["null" if v is None else str(v) for v in (default, value)]
            models.setdefault((key, *texts), []).append(LABELS[name])
    if not models:
        return None
    everywhere = len(comparison.sources)
    rows = [[*key, "all" if len(names) == everywhere else "; ".join(names)] for key, names in models.items()]
    columns = ["setting", "default", "here", "models"]
    return Table(columns=columns, rows=rows, code=columns[:3])
