"""Panels: colours that can be seen and told apart, drawings that hold no markup of the data."""

import re
from itertools import combinations

import numpy as np
import pytest
from matplotlib import image

from src.exp.report.figures import BACKGROUND, COLOURS, Panel, Plot, colour, label, svg, write_png

# Machado, Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency (2009).
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
)
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # of linear sRGB
WHITE = XYZ.sum(axis=1)
MODELS = ("popular", "markov", "markov_titles", "teacher", "baseline", "distill", "dllm2rec_upstream")
VERDICTS = ("better", "worse", "cannot tell")


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    dark, light = sorted(float(XYZ[1] @ linear(c)) for c in (one, other))
    return (light + 0.05) / (dark + 0.05)


def seen(colour: str) -> np.ndarray:
    """CIE L*a*b* as somebody without green cones sees it."""
    x, y, z = np.cbrt(XYZ @ np.clip(DEUTERANOPIA @ linear(colour), 0, 1) / WHITE)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", [*MODELS, *VERDICTS, "ink"])
def test_every_colour_stands_out_from_its_page(name, theme) -> None:
    assert contrast(getattr(COLOURS[name], theme), getattr(BACKGROUND, theme)) >= 3


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("names", [MODELS, VERDICTS])
def test_no_two_colours_look_alike_without_green_cones(names, theme) -> None:
    for one, other in combinations(names, 2):
        distance = np.linalg.norm(seen(getattr(COLOURS[one], theme)) - seen(getattr(COLOURS[other], theme)))
        assert distance > 20, (one, other, distance)  # 2.3 can just be told apart


def panel(title: str = "title") -> Panel:
    return Panel(title=title, alt='a "line" <up>', draw=lambda axis: axis.plot([0, 1], [0, 1], color=colour("distill")))


def test_an_svg_takes_its_colours_from_the_page_and_says_what_is_seen() -> None:
    text = svg(panel(), "one")
    assert text.startswith("<svg ") and text.rstrip().endswith("</svg>")
    assert 'role="img" aria-label="a &#34;line&#34; &lt;up&gt;"' in text
    assert "var(--distill)" in text and COLOURS["distill"].light not in text
    assert not re.search(r"<script|https?://|<!DOCTYPE", text)


def test_two_panels_of_a_page_share_no_id() -> None:
    ids = [set(re.findall(r'\bid="(.*?)"', svg(panel(), name))) for name in ("one", "two")]
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg(panel(), "one"))) <= ids[0]


def test_the_same_panel_has_the_same_bytes() -> None:
    assert svg(panel(), "one") == svg(panel(), "one")


def test_names_in_a_drawing_are_text() -> None:
    text = svg(panel(title=label("</svg><script> $x$ \x1b[31m\n")), "one")
    assert "<script" not in text and "\x1b" not in text and text.count("</svg>") == 1
    assert "$x$" in text  # no formula


def test_a_long_label_is_cut() -> None:
    assert len(label("x" * 200)) == 60 and label("x" * 60) == "x" * 60


def test_a_png_holds_all_panels(tmp_path) -> None:
    """Two a line: three panels are twice as wide and twice as high as one."""
    one, three = (Plot(name="plot", title="plot", panels=[panel()] * count) for count in (1, 3))
    shapes = []
    for plot in (one, three):
        write_png(plot, tmp_path / "plot.png")
        pixels = image.imread(tmp_path / "plot.png")
        shapes.append(np.array(pixels.shape[:2]))
        assert pixels[..., :3].std() > 0.01
    assert np.abs(shapes[1] - 2 * shapes[0]).max() <= 1
