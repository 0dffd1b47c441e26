"""Pages from templates: the same body as Markdown and as one HTML file, with all data escaped for either.

A body (`templates/*_body.j2`) is written once, in terms of the macros of `templates/html.j2` or `templates/md.j2`.
Whatever a template puts in is escaped on the way: by Jinja's autoescape in HTML, by a finalizer in Markdown; control
characters are made visible in both. Text that is not to be escaped is `Markup`, made by the filters and macros here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from tabulate import tabulate

from src.core.files import write_text
from src.core.foreign.escape import markdown, markdown_block, markdown_code, terminal
from src.exp.report.figures import BACKGROUND, COLOURS, Plot, css_name, svg

_TEMPLATES = Path(__file__).parent / "templates"
MISSING = "–"  # what a cell without a value shows
_NUMBER = re.compile(r"[-+\d][-+\d.,e%± to()]*")  # what a number's column holds: nothing to escape


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text.

    Attributes:
        rows: a cell for each column.
        numbers: columns that hold numbers, aligned to the right.
        code: columns that hold names a person types, such as settings.
    """

    columns: Sequence[str]
    rows: list[list[str]]
    numbers: Sequence[str] = ()
    code: Sequence[str] = ()


def write_pages(name: str, stem: Path, context: Mapping[str, Any]) -> list[Path]:
    """Write `<stem>.md` and `<stem>.html` from the templates `<name>.{md,html}.j2`.

    Args:
        context: what the body's template names; plots are `Plot`s.

    Returns:
        The two files.
    """
    files = []
    for kind, environment in _ENVIRONMENTS.items():
        file = stem.with_name(f"{stem.name}.{kind}")
        text = environment.get_template(f"{name}.{kind}.j2").render(context)
        write_text(file, text.rstrip() + "\n")
        files.append(file)
    return files


def write_markdown(name: str, file: Path, context: Mapping[str, Any]) -> None:
    """Write one page of Markdown from the template `<name>.md.j2`."""
    text = _ENVIRONMENTS["md"].get_template(f"{name}.md.j2").render(context)
    write_text(file, text.strip() + "\n")


def _html_value(value: object) -> object:
    """The finalizer of HTML: control characters, which no page may hold, become visible; autoescape does the rest."""
    return terminal(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _lines(text: str) -> Markup:
    """Text in `<pre>`, whose lines stay lines."""
    return Markup("\n").join(terminal(line) for line in text.split("\n"))


def _markdown_value(value: object) -> Markup:
    """The finalizer of Markdown: data becomes text of a line; `Markup` is ours already."""
    return value if isinstance(value, Markup) else Markup(markdown(str(value)))


def markdown_table(table: Table) -> Markup:
    """A table in Markdown (GitHub's)."""

    def cell(text: str, column: str) -> str:
        if column in table.numbers and _NUMBER.fullmatch(text):
            return text
        return markdown_code(text) if column in table.code else markdown(text)

    rows = [[cell(text, column) for text, column in zip(row, table.columns, strict=True)] for row in table.rows]
    align = ["right" if column in table.numbers else "left" for column in table.columns]
    headers = [markdown(column) for column in table.columns]
    return Markup(tabulate(rows, headers, tablefmt="pipe", colalign=align, disable_numparse=True))


def _panels(plot: Plot) -> list[Markup]:
    return [svg(panel, f"{plot.name}-{i}".replace("_", "-")) for i, panel in enumerate(plot.panels)]


def _palette(dark: bool) -> Markup:
    """The colours as custom properties of a style sheet."""
    named = {"background": BACKGROUND, **COLOURS}
    return Markup("\n".join(f"--{css_name(k)}: {c.dark if dark else c.light};" for k, c in named.items()))


def _environment(**options: Any) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,  # in Markdown, too: macros then give `Markup`, which the finalizer can tell from data
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.filters |= {
        "markdown_table": markdown_table,
        "markdown_code": lambda text: Markup(markdown_code(text)),
        "markdown_block": lambda text, language: Markup(markdown_block(text, language)),
        "panel": svg,
        "panels": _panels,
        "address": lambda path: Markup(quote(path)),
        "css_name": css_name,
        "lines": _lines,
        "unbroken": lambda text: text.replace(" %", "\u00a0%"),  # no line ends between a number and its unit
    }
    environment.globals["palette"] = _palette
    return environment


_ENVIRONMENTS = {"md": _environment(finalize=_markdown_value), "html": _environment(finalize=_html_value)}
