"""The plots of a run's report."""

from collections.abc import Iterable, Mapping
from functools import partial
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from src.core.errors import UserError
from src.exp.compare.comparison import DIFFERENCE, LABELS, metric_label
from src.exp.compare.significance import PairedTest, Ranks, half_width
from src.exp.report.figures import Panel, Plot, colour, draw_difference, frame_differences

_BASE_LOSSES = ("loss_ce", "loss_bce", "loss_sampled_softmax")  # columns of a training history, one of them
_LINE_STYLES = {"baseline": "--", "distill": "-"}


def plot_comparison(evaluations: dict[str, dict], ks: list[int], ranks: Mapping[str, list[Ranks]]) -> Plot:
    """Bars of Recall@K and NDCG@K per model, with the history's items left in and taken out, and 95 % intervals.

    Args:
        ranks: the runs of each model whose intervals can be drawn.
    """
    panels = []
    found = [e[part] for e in evaluations.values() for part in ("metrics", "metrics_masked")]
    widest = max((half_width(runs, f"recall@{max(ks)}", False) for runs in ranks.values()), default=0.0)
    top = 1.02 * max(values.get(f"recall@{k}", 0.0) for values in found for k in ks) + widest  # above all NDCG, too
    for part, history in (("metrics", "history shown"), ("metrics_masked", "history removed")):
        for metric in ("recall", "ndcg"):
            # The teacher has the cut-offs of its own run.
            values = {name: [e[part].get(f"{metric}@{k}", nan) for k in ks] for name, e in evaluations.items()}
            title = f"{metric_label(metric)}, {history}"
            spreads = {
                name: [half_width(runs, f"{metric}@{k}", part == "metrics_masked") for k in ks]
                for name, runs in ranks.items()
                if name in evaluations
            }
            groups = [f"@{k}" for k in ks]
            alt = f"{title}: {_values_in_words(values, groups)}.{_widest_in_words(spreads)}"
            draw = partial(_bars, values=values, spreads=spreads, groups=groups, top=top)
            panels.append(Panel(title=title, alt=alt, draw=draw))
    return Plot(name="comparison", title="Recall and NDCG by cut-off", panels=panels, legend=_legend(evaluations))


def plot_breakdown(
    tables: dict[str, pd.DataFrame],
    spreads: dict[str, pd.DataFrame],
    differences: dict[str, dict[str, PairedTest]],
    metric: str,
) -> Plot:
    """Bars of a metric per group and model, one panel for each table of `src.exp.compare.breakdown`.

    Args:
        spreads: half of their 95 % intervals, by the tables' titles.
        differences: what distillation changed in each group, by the tables' titles; none where it is not compared.
        metric: its name for people, here and below.
    """
    panels, models = [], []
    top = max((table.drop(columns="rows") + spreads[title]).max().max() for title, table in tables.items())
    for title, table in tables.items():
        groups = [f"{group}\n({rows} rows)" for group, rows in table["rows"].items()]
        models = list(table.columns.drop("rows"))
        values = {name: table[name].tolist() for name in models}
        halves = {name: spreads[title][name].tolist() for name in models}
        alt = f"Test {metric}, by {title}: {_values_in_words(values, list(table.index))}.{_widest_in_words(halves)}"
        draw = partial(_bars, values=values, spreads=halves, groups=groups, top=1.05 * top)
        panels.append(Panel(title=f"{metric}, by {title}", alt=alt, draw=draw))
    panels += [difference_panel(tests, metric, f"{DIFFERENCE}, by {title}") for title, tests in differences.items()]
    return Plot(name="breakdown", title="Where it helps", panels=panels, legend=_legend(models))


def plot_intervals(means: dict[str, tuple[float, float, float]], tests: dict[str, PairedTest], metric: str) -> Plot:
    """The metric of each model and the differences that were tested, with 95 % intervals.

    The difference that the report is about has an axis of its own: beside a difference to a reference, which may be a
    hundred times as large, it would be a dot.

    Args:
        means: mean, low and high by model.
        tests: by a name such as "distilled - baseline".
    """
    panels = [_means_panel(means, metric)]
    others = {name: test for name, test in tests.items() if name != DIFFERENCE}
    if others:
        panels.append(difference_panel(others, metric, f"Differences to the references, {metric}"))
    if DIFFERENCE in tests:
        panels.append(main_difference_panel(tests[DIFFERENCE], metric))
    return Plot(name="intervals", title="Metric and differences with 95 % intervals", panels=panels)


def main_difference_panel(test: PairedTest, metric: str) -> Panel:
    """What distillation changed, alone."""
    return difference_panel({DIFFERENCE: test}, metric, f"{DIFFERENCE}, test {metric}")


def difference_panel(tests: dict[str, PairedTest], metric: str, title: str) -> Panel:
    """Differences around a line at zero, coloured and named by their verdicts."""
    found = [f"{n} {t.difference:+.4f} ({t.low:+.4f} to {t.high:+.4f}), {t.verdict}" for n, t in tests.items()]
    alt = f"Differences of {metric}, with 95 % intervals: {'; '.join(found)}."
    height = 1.1 + 0.45 * len(tests)
    return Panel(title=title, alt=alt, height=height, draw=partial(_differences, tests=tests))


def _means_panel(means: dict[str, tuple[float, float, float]], metric: str) -> Panel:
    title = f"Test {metric}, 95 % interval"
    found = [f"{LABELS[name]} {mean:.4f} ({low:.4f} to {high:.4f})" for name, (mean, low, high) in means.items()]

    def draw(axis: Axes) -> None:
        for place, (name, (mean, low, high)) in enumerate(means.items()):
            sides = [[mean - low], [high - mean]]
            axis.errorbar(mean, place, xerr=sides, fmt="o", markersize=8, color=colour(name), capsize=4, linewidth=2)
        axis.set_xlim(left=0)
        axis.set_yticks(range(len(means)), [LABELS[name] for name in means])
        axis.set_ylim(-0.6, len(means) - 0.4)
        axis.grid(visible=False, axis="y")
        axis.invert_yaxis()

    return Panel(title=title, alt=f"{title}: {'; '.join(found)}.", height=1.1 + 0.4 * len(means), draw=draw)


def _differences(axis: Axes, tests: dict[str, PairedTest]) -> None:
    for place, test in enumerate(tests.values()):
        draw_difference(axis, place, test.difference, (test.low, test.high), test.verdict)
    frame_differences(axis, [test.low for test in tests.values()], [test.high for test in tests.values()])
    axis.set_yticks(range(len(tests)), list(tests))
    axis.set_ylim(-0.6, len(tests) - 0.4)
    if len(tests) == 1:  # named by the title
        axis.yaxis.set_visible(False)
        axis.spines.left.set_visible(False)
    axis.invert_yaxis()


def plot_learning_curves(histories: dict[str, Path], monitor: str, metric: str) -> Plot:
    """Training loss and the validation metric by epoch, of the students whose history is there.

    Args:
        monitor: the metric that picked the best epoch; metric: the same for people.
    """
    curves = {name: _read_history(file) for name, file in histories.items() if file.is_file()}
    losses = {name: next((c for c in _BASE_LOSSES if c in curve), None) for name, curve in curves.items()}
    students = {name: loss for name, loss in losses.items() if loss is not None}  # else no student of ours
    panels = [
        _curve_panel(
            {name: curves[name].set_index("epoch")[loss] for name, loss in students.items()}, "Base loss of training"
        ),
        _validation_panel({name: curves[name] for name in students}, monitor, metric),
    ]
    words = {name: loss.removeprefix("loss_").replace("_", " ") for name, loss in students.items()}
    legend = {name: f"{LABELS[name]} ({word})" for name, word in words.items()}
    return Plot(name="learning_curves", title="Learning curves", panels=panels, legend=legend)


def _read_history(path: Path) -> pd.DataFrame:
    """A training history: numbers by epoch.

    Raises:
        UserError: it is damaged.
    """
    try:
        curve = pd.read_csv(path, index_col=False)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: not a training history ({error}); delete it, the report does without") from None
    wanted = [c for c in curve if c == "epoch" or c in _BASE_LOSSES or str(c).startswith("valid/")]
    numbers = all(curve[c].dtype.kind in "if" and np.isfinite(curve[c]).all() for c in wanted)
    if "epoch" not in wanted or not numbers or curve.empty or curve["epoch"].duplicated().any():
        raise UserError(
            f"{path}: not a training history, which has a number in each cell of epoch, loss and valid columns; delete "
            "it, the report does without"
        )
    return curve


def _validation_panel(curves: dict[str, pd.DataFrame], monitor: str, metric: str) -> Panel:
    column = f"valid/{monitor}"
    values = {name: curve.set_index("epoch")[column] for name, curve in curves.items() if column in curve}
    title = f"Validation {metric} (dot: best epoch)"
    return _curve_panel(values, title, mark_best=True)


def _curve_panel(values: dict[str, pd.Series], title: str, mark_best: bool = False) -> Panel:
    """One line a model; `values` by epoch."""
    found = [
        f"{LABELS[name]} from {curve.iloc[0]:.4f} to {curve.iloc[-1]:.4f} in {len(curve)} epochs"
        + (f", best {curve.max():.4f} in epoch {curve.idxmax()}" if mark_best else "")
        for name, curve in values.items()
    ]

    def draw(axis: Axes) -> None:
        for name, curve in values.items():
            axis.plot(curve.index, curve, color=colour(name), linestyle=_LINE_STYLES.get(name, "-"), linewidth=1.8)
            if mark_best:
                axis.plot(curve.idxmax(), curve.max(), "o", color=colour(name))
        axis.set_xlabel("epoch")

    return Panel(title=title, alt=f"{title} by epoch: {'; '.join(found) or 'nothing recorded'}.", draw=draw)


def _bars(
    axis: Axes, values: dict[str, list[float]], spreads: dict[str, list[float]], groups: list[str], top: float
) -> None:
    """Bars of models side by side in each group, with their intervals where they are known."""
    width = 0.8 / len(values)
    for i, (name, heights) in enumerate(values.items()):
        places = np.arange(len(groups)) + (i - (len(values) - 1) / 2) * width
        axis.bar(places, heights, 0.92 * width, color=colour(name))
        if name in spreads:
            half = np.array([np.minimum(spreads[name], heights), spreads[name]])  # no metric is below 0
            axis.errorbar(places, heights, yerr=half, fmt="none", ecolor=colour("ink"), elinewidth=1, capsize=1.5)
    axis.set_xticks(range(len(groups)), groups)
    axis.set_ylim(0, top)
    axis.grid(visible=False, axis="x")


def _legend(models: Iterable[str]) -> dict[str, str]:
    return {name: LABELS[name] for name in models}


def _widest_in_words(spreads: dict[str, list[float]]) -> str:
    """How far the intervals reach: each of them would be read for minutes."""
    widest = max((half for halves in spreads.values() for half in halves), default=nan)
    return "" if widest != widest else f" 95 % intervals reach up to {widest:.3f} to either side."


def _values_in_words(values: dict[str, list[float]], groups: list[str]) -> str:
    def line(numbers: list[float]) -> str:
        return ", ".join(f"{group}: {n:.3f}" for n, group in zip(numbers, groups, strict=True) if n == n)

    return "; ".join(f"{LABELS[name]} {line(numbers)}" for name, numbers in values.items())
