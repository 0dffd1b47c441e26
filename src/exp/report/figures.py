"""Plots as panels: what is drawn, in which colours, and how panels become a PNG file or SVG inside a page.

A panel is drawn twice: beside others in a PNG file, and alone as SVG, so that a page can put panels side by side or
below each other as its width allows. In the SVG, colours are names of the page's style sheet (`var(--distill)`), which
has one value for light and one for dark.
"""

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
from markupsafe import Markup, escape

from src.core.files import write_atomic
from src.core.foreign.escape import terminal

matplotlib.use("Agg")
from matplotlib import RcParams
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

PANEL_WIDTH = 5.0  # inches; at 10 pt the labels stay readable where a phone shows it at two thirds
_COLUMNS = 2
_TITLE_CHARACTERS = 44  # a line of a title, beside the longest names of models; more would be cut off
_LONGEST_LABEL = 60
_SCALE = 96 / 72  # CSS pixels a point


@dataclass(frozen=True)
class Colour:
    """One colour on white and on the dark page; at least 3:1 against either (WCAG 1.4.11)."""

    light: str
    dark: str


# Told apart by lightness, too, so that they survive deuteranopia; tests/exp/report/test_figures.py measures both.
COLOURS = {
    "popular": Colour("#8c8c8c", "#8f98a3"),
    "markov": Colour("#4d4d4d", "#d0d5db"),
    "markov_titles": Colour("#32a64f", "#79f297"),
    "teacher": Colour("#7a1fd6", "#8463f7"),
    "baseline": Colour("#d55e00", "#f08a3c"),
    "distill": Colour("#0072b2", "#4fa8e8"),
    "dllm2rec_upstream": Colour("#6e3008", "#8c7c4d"),
    "better": Colour("#0071b3", "#4fa8e9"),
    "worse": Colour("#c2410c", "#f08a3d"),
    "cannot tell": Colour("#6b7280", "#9aa3ae"),
    "ink": Colour("#1f2328", "#e6e9ed"),
    "grid": Colour("#d5dae0", "#353b43"),
}
BACKGROUND = Colour("#ffffff", "#14171c")
SERIES = ("distill", "baseline", "teacher", "markov", "dllm2rec_upstream", "popular")  # colours of any other lines
MARKERS = ("o", "s", "^", "D", "v", "P")

_STYLE = RcParams(
    {
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": COLOURS["grid"].light,
        **{key: COLOURS["ink"].light for key in ("text.color", "axes.labelcolor", "axes.titlecolor", "axes.edgecolor")},
        **{key: COLOURS["ink"].light for key in ("xtick.color", "ytick.color")},
        "text.parse_math": False,  # a `$` in a name is a dollar
        "svg.fonttype": "none",  # text stays text: small, sharp, and read aloud
        "svg.hashsalt": "panel",  # the same drawing has the same bytes
    }
)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One drawing.

    Attributes:
        alt: what is seen, in words and numbers.
        draw: fills an axis.
        height: inches.
    """

    title: str
    alt: str
    draw: Callable[[Axes], None]
    height: float = 3.2


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Panels that belong together, one PNG file.

    Attributes:
        legend: label by colour (a key of `COLOURS`), where all panels share them.
    """

    name: str
    title: str
    panels: list[Panel]
    legend: dict[str, str] = field(default_factory=dict)

    @property
    def alt(self) -> str:
        return " ".join(panel.alt for panel in self.panels)


def colour(name: str) -> str:
    """The colour to draw with; grey for a name without one of its own."""
    return COLOURS.get(name, COLOURS["cannot tell"]).light


def label(text: str) -> str:
    """Data as a label: one line without control characters, cut where it would push the drawing aside."""
    text = terminal(text)
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"


def draw_difference(axis: Axes, place: float, mean: float, interval: tuple[float, float], verdict: str) -> None:
    """A difference with its interval on line `place`; its verdict stands on the side that is away from zero."""
    low, high = interval
    shade = colour(verdict)
    axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=shade, capsize=4, linewidth=2)
    end, offset, side = (low, -6, "right") if high < 0 else (high, 6, "left")
    axis.annotate(verdict, (end, place), (offset, 0), textcoords="offset points", ha=side, va="center", color=shade)


def frame_differences(axis: Axes, lows: Sequence[float], highs: Sequence[float]) -> None:
    """The line at zero, and room for the verdicts beside the intervals."""
    low, high = min(0.0, *lows), max(0.0, *highs)
    room = 0.4 * ((high - low) or 1.0)
    left = room if any(value < 0 for value in highs) else 0.1 * room
    right = room if any(value >= 0 for value in highs) else 0.1 * room
    axis.set_xlim(low - left, high + right)
    axis.axvline(0, color=colour("ink"), linewidth=1)
    axis.grid(visible=False, axis="y")


def write_png(plot: Plot, path: Path) -> None:
    """Write the panels of a plot, two a line, as one PNG file that is readable at the width of a page."""
    columns = min(_COLUMNS, len(plot.panels))
    lines = [plot.panels[i : i + columns] for i in range(0, len(plot.panels), columns)]
    heights = [max(panel.height for panel in line) for line in lines]
    with plt.rc_context(_STYLE):
        size = (PANEL_WIDTH * columns, sum(heights) + (0.4 if plot.legend else 0))
        figure, axes = plt.subplots(
            len(lines), columns, figsize=size, height_ratios=heights, squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(plot.panels) :]:
            axis.set_visible(False)
        for axis, panel in zip(axes.flat, plot.panels, strict=False):
            _fill(axis, panel)
        if plot.legend:
            handles = [Rectangle((0, 0), 1, 1, color=colour(name)) for name in plot.legend]
            labels = list(plot.legend.values())
            figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))
        plt.close(figure)


def svg(panel: Panel, name: str) -> Markup:
    """A panel as an SVG element for a page of ours, described by its `alt`.

    Args:
        name: letters that no other panel of the page has; its elements' ids begin with it.
    """
    content = io.BytesIO()
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(PANEL_WIDTH, panel.height), layout="constrained")
        _fill(axis, panel)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=nothing)
        plt.close(figure)
    body = content.getvalue().decode().partition("<svg")[2].partition(">")[2]
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r"(fill|stroke): (#[0-9a-f]{6})", _as_variable, body)
    width, height = (round(72 * inches) for inches in (PANEL_WIDTH, panel.height))
    shape = f'viewBox="0 0 {width} {height}" style="max-width: {width * _SCALE:.0f}px"'
    return Markup(f'<svg {shape} role="img" aria-label="{escape(terminal(panel.alt))}">{body}')


def _as_variable(match: re.Match) -> str:
    key = next((key for key, value in COLOURS.items() if value.light == match[2]), None)
    return f"{match[1]}: var(--{css_name(key)})" if key else match[0]


def css_name(key: str) -> str:
    """The custom property of a colour, without its dashes: `cannot-tell`."""
    return key.replace(" ", "-").replace("_", "-")


def _fill(axis: Axes, panel: Panel) -> None:
    axis.set_title(textwrap.fill(panel.title, _TITLE_CHARACTERS), loc="left")
    panel.draw(axis)
