"""What a study found, for its own page and for reports: the table as text, and its plots."""

from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from src.exp.compare.comparison import history_label
from src.exp.compare.studies import (
    COLUMNS,
    LEAD,
    LEAD_BOUNDS,
    LEAD_VERDICT,
    NOT_COMPARABLE,
    OTHER_RANKINGS,
)
from src.exp.report.figures import (
    MARKERS,
    SERIES,
    Panel,
    Plot,
    colour,
    draw_difference,
    frame_differences,
    label,
    write_png,
)
from src.exp.report.pages import MISSING, Table


def study_table_shown(table: pd.DataFrame, metric: str) -> Table:
    """The table of a study as text, what matters most on the left, where a narrow page shows it first."""
    further = [column for column in table.columns if column not in COLUMNS]
    frame = pd.DataFrame({"variant": [str(name) for name in table.index]})
    for column in further:
        frame[column] = _texts(table[column])
    deviations = ["" if pd.isna(value) else f" ± {value:.4f}" for value in table["std"]]
    means = _texts(table["mean"], "{:.4f}")
    frame[f"test {metric}"] = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
    frame["verdict"] = _texts(table["verdict"])
    frame["difference"] = _texts(table["difference"], "{:+.4f}")
    frame["95 % interval"] = _intervals(table, "low", "high")
    frame["p"] = _texts(table["p_value"], "{:.3g}")
    if LEAD in table:
        frame["lead over it"] = _texts(table[LEAD], "{:+.4f}")
        frame["its 95 % interval"] = _intervals(table, *LEAD_BOUNDS)
        frame["leader is"] = _texts(table[LEAD_VERDICT])
    for masked, column in OTHER_RANKINGS.items():
        if column in table:
            frame[history_label(not masked)] = _texts(table[column], "{:.4f}")
    if "validation" in table:
        frame["validation"] = _texts(table["validation"], "{:.4f}")
    frame["seeds"], frame["users"] = _texts(table["seeds"]), _texts(table["users"])
    if (table[NOT_COMPARABLE] != "").any():
        frame[NOT_COMPARABLE] = [words or MISSING for words in table[NOT_COMPARABLE]]
    text = {
        "variant",
        "verdict",
        "leader is",
        NOT_COMPARABLE,
        *(column for column in further if table[column].dtype == object),
    }
    numbers = [column for column in frame.columns if column not in text]
    return Table(columns=list(frame.columns), rows=frame.to_numpy().tolist(), numbers=numbers)


def _intervals(table: pd.DataFrame, low: str, high: str) -> list[str]:
    bounds = zip(_texts(table[low], "{:+.4f}"), _texts(table[high], "{:+.4f}"), strict=True)
    return [MISSING if MISSING in pair else " to ".join(pair) for pair in bounds]


def _texts(column: pd.Series, form: str = "{}") -> list[str]:
    return [MISSING if pd.isna(value) else form.format(value) for value in column]


_LINE_HEIGHT = 0.46  # inches a variant, its name above its point


def plot_study(table: pd.DataFrame, *, metric: str, path: Path, sort: bool = False) -> None:
    """Write `variants_plot` as a PNG file."""
    write_png(variants_plot(table, metric=metric, name=path.stem, sort=sort), path)


def plot_curve(table: pd.DataFrame, *, x: str, series: str, metric: str, path: Path, level: str | None = None) -> None:
    """Write `curve_plot` as a PNG file."""
    write_png(curve_plot(table, x=x, series=series, metric=metric, name=path.stem, level=level), path)


def variants_plot(table: pd.DataFrame, *, metric: str, name: str, sort: bool = False) -> Plot:
    """Each student's metric with the standard deviation over seeds, and its difference to the reference; then the
    differences of what has no student, as the most popular items.

    Args:
        table: of `study_table`; a point has the colour of its verdict.
        metric: its name for people, here and below.
        sort: the best on top, else in the order of the table.
    """
    frame = table.sort_values("mean", ascending=False) if sort else table
    trained = frame["validation"].notna() if "validation" in frame else pd.Series(True, index=frame.index)
    students, others = frame[trained], frame[~trained]
    title = f"Test {metric}, mean ± standard deviation over seeds"
    found = [f"{n} {line['mean']:.4f}{_sd(line['std'])}" for n, line in students.iterrows()]
    draw = partial(_means, frame=students)
    panels = [Panel(title=title, alt=f"{title}: {'; '.join(found)}.", height=_height(students), draw=draw)]
    # Apart, because an axis on which the most popular items have room shows nothing of how students differ.
    for lines, begin in ((students, "Difference"), (others, "Without a student: difference")):
        tested = lines[lines["difference"].notna()]
        if len(tested):
            panels.append(_differences_panel(tested, f"{begin} in {metric}, 95 % interval"))
    return Plot(name=name, title="Variants", panels=panels)


def _differences_panel(frame: pd.DataFrame, title: str) -> Panel:
    found = [
        f"{n} {line['difference']:+.4f} ({line['low']:+.4f} to {line['high']:+.4f}), {line['verdict']}"
        for n, line in frame.iterrows()
    ]
    alt, draw = f"{title}: {'; '.join(found)}.", partial(_differences, frame=frame)
    return Panel(title=title, alt=alt, height=_height(frame), draw=draw)


def _height(frame: pd.DataFrame) -> float:
    return 1.0 + _LINE_HEIGHT * len(frame)


def curve_plot(
    table: pd.DataFrame, *, x: str, series: str, metric: str, name: str, level: str | None = None, x_label: str = ""
) -> Plot:
    """A metric against a number, one line per series, bars of one standard deviation over seeds.

    Args:
        table: of `study_table`, with the columns `x` (numbers) and `series`; a line without a series belongs to each.
        level: the line of the table that is drawn as a horizontal, such as the baseline.
        x_label: what the numbers are called; empty: as their column.
    """
    points = table.drop(index=level) if level is not None else table
    common, own = points[points[series].isna()], points[points[series].notna()]
    curves = {str(n): pd.concat([common, rows]).sort_values(x) for n, rows in own.groupby(series, sort=False)}
    x_label = label(x_label or x)
    title = f"Test {metric}, by {x_label}"
    words = [
        f"{n} " + ", ".join(f"{value:g}: {mean:.4f}" for value, mean in zip(curve[x], curve["mean"], strict=True))
        for n, curve in curves.items()
    ]
    if level is not None:
        words.append(f"{level} {table.loc[level, 'mean']:.4f} (dashed)")
    line = None if level is None else (level, float(table["mean"][level]))
    draw = partial(_curves, curves=curves, x=x, x_label=x_label, level=line)
    return Plot(
        name=name,
        title="Curve",
        panels=[Panel(title=title, alt=f"{title}, means over seeds: {'; '.join(words)}.", draw=draw, height=4)],
    )


def _sd(deviation: float) -> str:
    return "" if np.isnan(deviation) else f" ± {deviation:.4f}"


def _means(axis: Axes, frame: pd.DataFrame) -> None:
    for place, (_, line) in enumerate(frame.iterrows()):
        shade = colour(line["verdict"]) if line["verdict"] else colour("ink")
        deviation = None if np.isnan(line["std"]) else line["std"]
        axis.errorbar(line["mean"], place, xerr=deviation, fmt="o", color=shade, capsize=4, linewidth=2)
    _name_lines(axis, [str(name) for name in frame.index])


def _differences(axis: Axes, frame: pd.DataFrame) -> None:
    for place, (_, line) in enumerate(frame.iterrows()):
        draw_difference(axis, place, line["difference"], (line["low"], line["high"]), line["verdict"])
    frame_differences(axis, frame["low"].tolist(), frame["high"].tolist())
    _name_lines(axis, [str(name) for name in frame.index])


def _name_lines(axis: Axes, names: list[str]) -> None:
    """Each name above its line and not beside the axis: settings are long, and phones are narrow."""
    for place, name in enumerate(names):
        where = (0.005, place - 0.38)
        axis.text(*where, label(name), transform=axis.get_yaxis_transform(), va="center", fontsize=9)
    axis.set_ylim(-0.7, len(names) - 0.5)
    axis.yaxis.set_visible(False)
    axis.spines.left.set_visible(False)
    axis.invert_yaxis()


def _curves(
    axis: Axes, *, curves: dict[str, pd.DataFrame], x: str, x_label: str, level: tuple[str, float] | None
) -> None:
    for (name, curve), shade, marker in zip(curves.items(), cycle(SERIES), cycle(MARKERS), strict=False):
        deviation = curve["std"].fillna(0.0)
        axis.errorbar(
            curve[x], curve["mean"], deviation, color=colour(shade), marker=marker, capsize=3, label=label(name)
        )
    if level is not None:
        axis.axhline(level[1], color=colour("ink"), linestyle="--", linewidth=1.2, label=label(level[0]))
    axis.set_xlabel(x_label)
    axis.legend(frameon=False, fontsize=9)
