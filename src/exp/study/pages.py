"""The page of a study: what its variants did, as a table for programs, a plot, and a page for people."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from src.core.files import write_text
from src.exp.compare.studies import LEAD, LEAD_VERDICT, NOT_COMPARABLE
from src.exp.report.figures import Plot, write_png
from src.exp.report.pages import write_pages
from src.exp.report.studies import study_table_shown, variants_plot
from src.exp.report.tables import for_spreadsheets

_SECTIONS = {"table": "All variants", "unfinished": "Not finished", "run": "What was run", "repeat": "How to repeat it"}
_TONES = ("better", "worse", "cannot tell")


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything the page of a study tells.

    Attributes:
        name: of its files.
        metric: the one that decides, its name for people.
        table: of `study_table`; further columns are shown as they are.
        reference: the line that the others were tested against; leader: the one that was tested against each other,
            empty where none was.
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
    leader: str = ""
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
        "leader": _in_words(study.leader),
        "readings": [*_readings(study.table), *_leads(study)],
        "table": study_table_shown(study.table, study.metric),
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


def _leads(study: Study) -> list[str]:
    """What the leader is better or worse than, and what it cannot be told from."""
    if not study.leader:
        return []
    words = {"better": "is ahead of", "worse": "is behind", "cannot tell": "cannot be told from"}
    tested = study.table[study.table[LEAD].notna()]
    found = {tone: tested[tested[LEAD_VERDICT] == tone][LEAD] for tone in _TONES}
    return [
        f"{_in_words(study.leader)} {words[tone]}: "
        + "; ".join(f"{name} ({lead:+.4f})" for name, lead in leads.items())
        for tone, leads in found.items()
        if len(leads)
    ]
