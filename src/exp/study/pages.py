"""The page of a study: what its variants did, as a table for programs, a plot, and a page for people."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from src.core.files import write_text
from src.exp.compare.comparison import history_label
from src.exp.report.figures import Plot, write_png
from src.exp.report.pages import MISSING, Table, write_pages
from src.exp.report.tables import for_spreadsheets
from src.exp.study.plots import variants_plot
from src.exp.study.table import NOT_COMPARABLE, OTHER_RANKINGS

_SECTIONS = {"table": "All variants", "unfinished": "Not finished", "run": "What was run", "repeat": "How to repeat it"}
_TONES = ("better", "worse", "cannot tell")
_OWN_COLUMNS = (
    "seeds",
    "users",
    "validation",
    "mean",
    "std",
    *OTHER_RANKINGS.values(),
    "difference",
    "low",
    "high",
    "p_value",
    "verdict",
)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything the page of a study tells.

    Attributes:
        name: of its files.
        metric: the one that decides, its name for people.
        table: of `study_table`; further columns are shown as they are.
        reference: the line that the others were tested against.
        plot: None draws the variants.
        about: sentences above the table: what was varied, on what.
        unfinished: what failed or was not run, one line each.
        facts: what was run, where, from what, by name.
        command: that repeats it.
    """

    name: str
    title: str
    metric: str
    table: pd.DataFrame
    reference: str
    plot: Plot | None = None
    about: Sequence[str] = ()
    unfinished: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    command: str = ""


def study_page(study: Study, folder: Path) -> list[Path]:
    """Write `<name>.csv`, `<name>.md`, `<name>.html` and `<name>.png` into a folder.

    Returns:
        The four files.
    """
    files = [folder / f"{study.name}.csv", folder / f"{study.name}.png"]
    write_text(files[0], for_spreadsheets(study.table).to_csv(float_format="%.6g"))
    shown = replace(study, table=study.table.rename(index=_in_words))
    plot = study.plot or variants_plot(shown.table, metric=study.metric, name=study.name)
    write_png(plot, files[1])
    pages = write_pages("study", folder / study.name, _context(shown, plot))
    return [files[0], *pages, files[1]]


def _in_words(name: object) -> str:
    """A variant's key as words; the name of a sweep's variant consists of settings, which stay as they are typed.

    >>> _in_words("random_teaches"), _in_words("distill student.num_blocks=2")
    ('random teaches', 'distill student.num_blocks=2')
    """
    text = str(name)
    return text.replace("_", " ") if re.fullmatch(r"\w+", text) else text


def _context(study: Study, plot: Plot) -> dict[str, Any]:
    """What `templates/study_body.j2` names."""
    there = {"table": True, "unfinished": study.unfinished, "run": study.facts, "repeat": study.command}
    return {
        "study": study,
        "title": study.title,
        "sections": {name: title for name, title in _SECTIONS.items() if there[name]},
        "metric": study.metric,
        "tone": _tone(study.table),
        "headline": _headline(study),
        "readings": _readings(study.table),
        "table": _shown(study.table, study.metric),
        "num_tests": int(study.table["difference"].notna().sum()),
        "plot": plot,
        "plot_file": f"{study.name}.png",
    }


def _by_verdict(table: pd.DataFrame) -> dict[str, list[str]]:
    return {tone: [str(name) for name in table.index[table["verdict"] == tone]] for tone in _TONES}


def _tone(table: pd.DataFrame) -> str:
    """One verdict for the page: that of all variants that were tested, else none."""
    found = [tone for tone, names in _by_verdict(table).items() if names]
    return found[0] if len(found) == 1 else "cannot tell"


def _headline(study: Study) -> str:
    """How many variants are better than the reference, in one sentence."""
    counts = {tone: len(names) for tone, names in _by_verdict(study.table).items()}
    total = sum(counts.values())
    if total == 0:
        return f"No variant can be compared with {study.reference}."
    found = ", ".join(
        f"{counts[tone]} {words}"
        for tone, words in (("better", "better"), ("worse", "worse"), ("cannot tell", "that cannot be told from it"))
        if counts[tone]
    )
    return f"Of {total} variant{'s' if total > 1 else ''} compared with {study.reference}: {found}."


def _readings(table: pd.DataFrame) -> list[str]:
    """Which variants had which verdict, and which were not compared."""
    lines = [
        f"{tone}: " + "; ".join(f"{name} ({table.loc[name, 'difference']:+.4f})" for name in names)
        for tone, names in _by_verdict(table).items()
        if names
    ]
    unlike = table[NOT_COMPARABLE][table[NOT_COMPARABLE] != ""]
    return [*lines, *(f"{NOT_COMPARABLE}: {name}: {words}" for name, words in unlike.items())]


def _shown(table: pd.DataFrame, metric: str) -> Table:
    """The table as text, what matters most on the left, where a narrow page shows it first."""
    further = [column for column in table.columns if column not in (*_OWN_COLUMNS, NOT_COMPARABLE)]
    frame = pd.DataFrame({"variant": [str(name) for name in table.index]})
    for column in further:
        frame[column] = _texts(table[column])
    deviations = ["" if pd.isna(value) else f" ± {value:.4f}" for value in table["std"]]
    means = _texts(table["mean"], "{:.4f}")
    frame[f"test {metric}"] = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
    frame["verdict"] = _texts(table["verdict"])
    frame["difference"] = _texts(table["difference"], "{:+.4f}")
    bounds = zip(_texts(table["low"], "{:+.4f}"), _texts(table["high"], "{:+.4f}"), strict=True)
    frame["95 % interval"] = [MISSING if MISSING in pair else " to ".join(pair) for pair in bounds]
    frame["p"] = _texts(table["p_value"], "{:.3g}")
    for masked, column in OTHER_RANKINGS.items():
        if column in table:
            frame[history_label(not masked)] = _texts(table[column], "{:.4f}")
    if "validation" in table:
        frame["validation"] = _texts(table["validation"], "{:.4f}")
    frame["seeds"], frame["users"] = _texts(table["seeds"]), _texts(table["users"])
    if (table[NOT_COMPARABLE] != "").any():
        frame[NOT_COMPARABLE] = [words or MISSING for words in table[NOT_COMPARABLE]]
    text = {"variant", "verdict", NOT_COMPARABLE, *(column for column in further if table[column].dtype == object)}
    numbers = [column for column in frame.columns if column not in text]
    return Table(columns=list(frame.columns), rows=frame.to_numpy().tolist(), numbers=numbers)


def _texts(column: pd.Series, form: str = "{}") -> list[str]:
    return [MISSING if pd.isna(value) else form.format(value) for value in column]
