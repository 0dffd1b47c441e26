"""The plots of a report and of a sweep (PNG, made to be read at the width of a page)."""

from math import nan
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from src.core.files import write_atomic
from src.core.significance import PairedTest

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

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
_VERDICT_COLOURS = {"better": "#2e7d32", "worse": "#c62828", "cannot tell": "#616161"}
_BASE_LOSSES = ("loss_ce", "loss_bce", "loss_sampled_softmax")  # columns of a training history, one of them


def _save(figure: Figure, path: Path, legend_above: bool = False) -> None:
    figure.tight_layout(rect=(0, 0, 1, 0.93) if legend_above else (0, 0, 1, 1))
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))
    plt.close(figure)


def _legend_above(figure: Figure, axis: plt.Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False)


def plot_comparison(evaluations: dict[str, dict], ks: list[int], path: Path) -> None:
    """Bars of Recall@K and NDCG@K per model, history shown on top and masked below."""
    figure, grid = plt.subplots(2, 2, figsize=(10, 6.4), sharex=True)
    for line, (part, title) in enumerate((("metrics", "history shown"), ("metrics_masked", "history masked"))):
        for axis, metric in zip(grid[line], ("recall", "ndcg"), strict=True):
            # The teacher has the cut-offs of its own run.
            values = {name: [e[part].get(f"{metric}@{k}", nan) for k in ks] for name, e in evaluations.items()}
            _grouped_bars(axis, values, [f"@{k}" for k in ks])
            axis.set_title(f"{'Recall' if metric == 'recall' else 'NDCG'}, {title}")
    _legend_above(figure, grid[0][0])
    _save(figure, path, legend_above=True)


def _grouped_bars(axis: plt.Axes, values: dict[str, list[float]], groups: list[str]) -> None:
    width = 0.8 / len(values)
    for i, (name, heights) in enumerate(values.items()):
        places = np.arange(len(groups)) + (i - (len(values) - 1) / 2) * width
        axis.bar(places, heights, width, label=LABELS[name], color=_COLOURS[name])
    axis.set_xticks(range(len(groups)), groups)
    axis.grid(axis="y", alpha=0.3)


def plot_intervals(
    means: dict[str, tuple[float, float, float]], tests: dict[str, PairedTest], metric: str, path: Path
) -> None:
    """Left the metric of each model, right the differences that were tested, both with 95 % intervals.

    Args:
        means: mean, low and high by model.
        tests: by a name such as "distilled - baseline".
    """
    height = 1.4 + 0.42 * max(len(means), len(tests))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, height))
    for place, (name, (mean, low, high)) in enumerate(means.items()):
        left.barh(place, mean, 0.62, color=_COLOURS[name], xerr=[[mean - low], [high - mean]], capsize=4)
    left.set_yticks(range(len(means)), [LABELS[name] for name in means])
    left.set_title(f"test {metric}, 95 % interval")
    for place, test in enumerate(tests.values()):
        colour = _VERDICT_COLOURS[test.verdict]
        sides = [[test.difference - test.low], [test.high - test.difference]]
        right.errorbar(test.difference, place, xerr=sides, fmt="o", color=colour, capsize=4)
        right.annotate(
            test.verdict, (test.difference, place), (0, 7), textcoords="offset points", ha="center", color=colour
        )
    right.margins(x=0.2)  # room for the verdicts
    right.axvline(0, color="black", linewidth=0.8)
    right.set_yticks(range(len(tests)), list(tests))
    right.set_ylim(-0.5, len(tests) - 0.3)
    right.set_title(f"difference in {metric}, 95 % interval")
    for axis in (left, right):
        axis.grid(axis="x", alpha=0.3)
        axis.invert_yaxis()
    _save(figure, path)


def plot_breakdown(tables: dict[str, pd.DataFrame], metric: str, path: Path) -> None:
    """Bars of a metric per group and model, one panel for each table of `src.exp.breakdown`."""
    figure, axes = plt.subplots(1, len(tables), figsize=(10, 3.8), sharey=True, squeeze=False)
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        groups = [f"{group}\n({rows} rows)" for group, rows in table["rows"].items()]
        _grouped_bars(axis, {name: table[name].tolist() for name in table.columns.drop("rows")}, groups)
        axis.set_xlabel(title)
    axes[0][0].set_ylabel(f"test {metric}")
    _legend_above(figure, axes[0][0])
    _save(figure, path, legend_above=True)


def plot_learning_curves(histories: dict[str, Path], monitor: str, path: Path) -> None:
    """Training loss and the validation metric by epoch, for the students."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    for name, file in histories.items():
        history = pd.read_csv(file) if file.is_file() else {}
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


def plot_sweep(names: list[str], table: pd.DataFrame, metric: str, path: Path) -> None:
    """The metric of each arm: mean over seeds, bar of one standard deviation; best on top.

    Args:
        names: labels of the table's lines.
        table: columns `model`, `<metric> mean` and `<metric> sd` (missing for one seed).
    """
    frame = table.assign(name=names).sort_values(f"{metric} mean").reset_index(drop=True)
    figure, axis = plt.subplots(figsize=(10, 1.3 + 0.34 * len(frame)))
    for place, line in frame.iterrows():
        deviation = line[f"{metric} sd"]
        sd = None if pd.isna(deviation) else deviation
        axis.errorbar(line[f"{metric} mean"], place, xerr=sd, fmt="o", capsize=4, color=_COLOURS[line["model"]])
    axis.set_yticks(range(len(frame)), frame["name"])
    axis.set_ylim(-0.6, len(frame) - 0.4)
    axis.set_xlabel(f"test {metric}, mean and standard deviation over seeds")
    axis.grid(alpha=0.3)
    _save(figure, path)
