"""The comparison of a run: summary table (csv, Markdown), plots (PNG) and `report.md`."""

import os
import platform
import shlex
from dataclasses import dataclass
from math import nan
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from omegaconf import OmegaConf

from src.core.data_utils import SequenceDataset
from src.core.files import read_json, write_atomic, write_text
from src.core.paths import RunFolder
from src.exp.settings import Settings

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LABELS = {
    "popular": "most popular",
    "markov": "Markov chain",
    "teacher": "teacher",
    "baseline": "student, baseline",
    "distill": "student, distilled",
    "dllm2rec_upstream": "DLLM2Rec's program",
}
_COLOURS = {
    "popular": "#c4c4c4",
    "markov": "#808080",
    "teacher": "#4c72b0",
    "baseline": "#dd8452",
    "distill": "#55a868",
    "dllm2rec_upstream": "#8172b3",
}
_BASE_LOSSES = ("loss_ce", "loss_bce", "loss_sampled_softmax")  # columns of a training history, one of them


@dataclass(frozen=True)
class Comparison:
    """Everything the report tells.

    Attributes:
        folder: where it is written.
        sources: run folder that each stage's model came from.
        evaluations: contents of `eval_*.json` by model, in the order of the table.
    """

    settings: Settings
    commit: str
    dataset: SequenceDataset
    device: torch.device
    folder: RunFolder
    sources: dict[str, RunFolder]
    evaluations: dict[str, dict]


def summary_table(comparison: Comparison) -> pd.DataFrame:
    """One line per model; columns `<metric>@<k>` with the history shown, `... masked` with it removed."""
    rows = {}
    for name, evaluation in comparison.evaluations.items():
        masked = {f"{key} masked": value for key, value in evaluation["metrics_masked"].items()}
        rows[LABELS[name]] = {**evaluation["metrics"], **masked}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def write_report(comparison: Comparison) -> None:
    """Write `metrics/summary.{csv,md}`, `plots/*.png` and `report.md`."""
    folder, frame = comparison.folder, summary_table(comparison)
    write_text(folder.root / "metrics" / "summary.csv", frame.to_csv(float_format="%.6f"))
    write_text(folder.root / "metrics" / "summary.md", _markdown(frame) + "\n")
    _plot_comparison(comparison, folder.plots_dir / "comparison.png")
    _plot_learning_curves(comparison, folder.plots_dir / "learning_curves.png")
    write_text(folder.report_file, _report(comparison, frame))


def _markdown(frame: pd.DataFrame) -> str:
    """Metrics down, models across; what a model lacks is a dash."""
    table = frame.T.astype(object)
    return table.where(table.notna(), None).to_markdown(floatfmt=".4f", missingval="-")


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))
    plt.close(figure)


def _plot_comparison(comparison: Comparison, path: Path) -> None:
    """Bars of Recall@K and NDCG@K per model, history shown on top and masked below."""
    ks = sorted(comparison.settings.metrics.ks)
    names = list(comparison.evaluations)
    figure, grid = plt.subplots(2, 2, figsize=(10, 6.4), sharex=True)
    for line, (part, title) in enumerate((("metrics", "history shown"), ("metrics_masked", "history masked"))):
        for axis, metric in zip(grid[line], ("recall", "ndcg"), strict=True):
            for i, name in enumerate(names):
                # The teacher has the cut-offs of its own run.
                values = [comparison.evaluations[name][part].get(f"{metric}@{k}", nan) for k in ks]
                places = [j + (i - (len(names) - 1) / 2) * 0.8 / len(names) for j in range(len(ks))]
                axis.bar(places, values, 0.8 / len(names), label=LABELS[name], color=_COLOURS[name])
            axis.set_xticks(range(len(ks)), [f"@{k}" for k in ks])
            axis.set_title(f"{'Recall' if metric == 'recall' else 'NDCG'}, {title}")
            axis.grid(axis="y", alpha=0.3)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(names), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))
    plt.close(figure)


def _plot_learning_curves(comparison: Comparison, path: Path) -> None:
    """Training loss and the validation metric by epoch, for the students."""
    monitor = comparison.settings.metrics.monitor
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    for name, source in comparison.sources.items():
        history = pd.read_csv(source.history_file(name)) if source.history_file(name).is_file() else {}
        loss = next((column for column in _BASE_LOSSES if column in history), None)
        if loss is None:  # no student of ours
            continue
        left.plot(history["epoch"], history[loss], label=f"{LABELS[name]}: {loss[5:]}", color=_COLOURS[name])
        if f"valid/{monitor}" in history:
            curve = history[f"valid/{monitor}"]
            right.plot(history["epoch"], curve, label=LABELS[name], color=_COLOURS[name])
            right.plot(history["epoch"][curve.idxmax()], curve.max(), "o", color=_COLOURS[name])
    left.set_title("training, base loss")
    right.set_title(f"validation {monitor} (dot: best epoch)")
    for axis in (left, right):
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(frameon=False)
    _save(figure, path)


def _report(comparison: Comparison, frame: pd.DataFrame) -> str:
    settings, dataset, monitor = comparison.settings, comparison.dataset, comparison.settings.metrics.monitor
    sections = [
        f"# {settings.general.experiment_name}: {dataset.name}",
        _verdict(comparison, monitor),
        "## Test metrics",
        f"Full ranking over all {dataset.num_items} items. `masked`: items of the history are removed. "
        "Recall and hit ratio are the same number where there is one target per row.",
        _markdown(frame),
        *_protocol_note(comparison),
        "![comparison](plots/comparison.png)",
        "## Training",
        "![learning curves](plots/learning_curves.png)",
        *_teacher_section(comparison),
        "## Cost",
        _times(comparison),
        "## What was run",
        _facts(comparison),
        "## How to repeat it",
        "\n\n".join(_commands(comparison)),
    ]
    return "\n\n".join(sections) + "\n"


def _verdict(comparison: Comparison, monitor: str) -> str:
    """What distillation did, and which student is below a floor; significance needs several seeds."""
    values = {name: e["metrics"][monitor] for name, e in comparison.evaluations.items() if monitor in e["metrics"]}
    students = [name for name in ("baseline", "distill") if name in values]
    if len(students) == 2:
        before, after = values["baseline"], values["distill"]
        relative = f" ({(after / before - 1) * 100:+.1f} %)" if before > 0 else ""
        text = f"Test {monitor}: baseline {before:.4f}, distilled {after:.4f}{relative}, "
    else:
        text = f"Only one student was found, so distillation has nothing to be compared with. Test {monitor}: "
        text += "".join(f"{LABELS[name]} {values[name]:.4f}, " for name in students)
    text += f"most popular {values['popular']:.4f}, Markov chain {values['markov']:.4f}. "
    for floor in ("popular", "markov"):
        below = [LABELS[name] for name in students if values[name] < values[floor]]
        if below:
            text += f"Below the floor that {LABELS[floor]} sets: {' and '.join(below)}; not worth distilling so. "
    return text + "This is one seed: repeat with other values of `general.seed` before drawing conclusions."


def _protocol_note(comparison: Comparison) -> list[str]:
    upstream = comparison.evaluations.get("dllm2rec_upstream")
    if upstream is None:
        return []
    return [f"{LABELS['dllm2rec_upstream']} follows a protocol of its own ({upstream['protocol']}): do not compare."]


def _teacher_section(comparison: Comparison) -> list[str]:
    teacher = comparison.evaluations.get("teacher")
    if teacher is None:
        return []
    answers = teacher["answers"]
    lines = [
        "## Teacher",
        "| measure on the test rows | value | 95 % interval |\n|---|---|---|\n"
        + "\n".join(
            f"| {title} | {answers[key]:.4f} | {answers[key + '_low']:.4f} to {answers[key + '_high']:.4f} |"
            for title, key in (
                ("HR@1 among the candidates (correct / all)", "hr@1_all"),
                ("HR@1 of the valid answers (correct / valid)", "hr@1"),
                ("ValidRatio", "valid_ratio"),
                ("HR@1 of the likeliest candidate", "hr@1_likelihood"),
            )
        ),
        f"{answers['num_rows']} rows. Its full ranking in the table above ranks the frozen recommender's candidates.",
    ]
    return lines


def _times(comparison: Comparison) -> str:
    seconds: dict[str, float] = {}
    for source in {run.root: run for run in comparison.sources.values()}.values():
        if source.time_file.is_file():
            seconds |= read_json(source.time_file)
    rows = [f"| {name} | {value:.1f} |" for name, value in seconds.items()]
    return "| step | seconds |\n|---|---|\n" + "\n".join(rows) if rows else "No times were recorded."


def _facts(comparison: Comparison) -> str:
    dataset, settings = comparison.dataset, comparison.settings
    device = torch.cuda.get_device_name() if comparison.device.type == "cuda" else platform.processor() or "CPU"
    facts = {
        "dataset": f"{dataset.name}, {dataset.num_items} items; rows: {len(dataset.train)} train, "
        f"{len(dataset.valid)} validation, {len(dataset.test)} test",
        "dataset fingerprint": dataset.fingerprint[:16],
        "student": f"{settings.student.name}, {settings.student.emb_size} dimensions",
        "seed": settings.general.seed,
        "commit": comparison.commit,
        "hardware": f"{device}, {os.cpu_count()} cores, PyTorch {torch.__version__}",
        **{f"{LABELS[name]} from": str(run.root.name) for name, run in comparison.sources.items()},
    }
    return "\n".join(f"- {key}: {value}" for key, value in facts.items())


def _commands(comparison: Comparison) -> list[str]:
    """The command line of each stage, from its snapshot of the overrides."""
    modules = {"teacher": "run_teacher", "baseline": "run_student_baseline"}
    lines = []
    for name, source in comparison.sources.items():
        file = source.snapshot_dir(name) / "overrides.yaml"
        overrides = OmegaConf.load(file) if file.is_file() else []
        kept = [str(o) for o in overrides]
        command = f"poetry run python -m src.exp.{modules.get(name, 'run_distill')}"
        lines.append("    " + " ".join([command, *map(shlex.quote, kept)]))
    return lines
