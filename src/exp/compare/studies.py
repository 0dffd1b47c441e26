"""The studies of a data set, as a report of it shows them."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from src.core.paths import result_root
from src.exp.stage.inputs import DATA
from src.exp.stage.lookup import Found, complete_runs
from src.exp.stage.stage import Stage

NOT_COMPARABLE = "not comparable"
OTHER_RANKINGS = {False: "masked", True: "shown"}  # column of the ranking that does not decide, by whether masked does
_NUMBERS, _EMPTY_TEXTS = ["mean", "std", "difference", "low", "high", "p_value"], {"verdict": None, NOT_COMPARABLE: ""}
LEAD, LEAD_BOUNDS, LEAD_VERDICT = "lead", ("lead_low", "lead_high"), "lead_verdict"
_OF_LEADS = [LEAD, *LEAD_BOUNDS, LEAD_VERDICT]  # where a study has a leader
# Those of `study_table`.
COLUMNS = ["seeds", "users", "validation", *_NUMBERS, *OTHER_RANKINGS.values(), *_EMPTY_TEXTS, *_OF_LEADS]


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What a complete study found.

    Attributes:
        name: `study.name`; folder: name of its run folder.
        table: as `study_table` makes it, the variants in words.
    """

    name: str
    folder: str
    table: pd.DataFrame


def studies_of(stage: Stage) -> list[StudyResult]:
    """The newest complete study of each name that has the stage's data and decides by its metric.

    A study whose table is not what its record says it wrote is left out, with a warning.
    """
    metrics = stage.settings.metrics
    wanted = {DATA: stage.dataset.fingerprint, "metrics.monitor": metrics.monitor, "metrics.history": metrics.history}
    found: dict[str, StudyResult] = {}
    for run in complete_runs("study", result_root(stage.settings)):
        if any(run.record.made_from.get(key) != value for key, value in wanted.items()):
            continue
        study = _read(run, stage)
        if study is not None:
            found.setdefault(study.name, study)
    return list(found.values())


def _read(run: Found, stage: Stage) -> StudyResult | None:
    tables = [run.folder.root / name for name in run.record.files if name.endswith(".csv")]
    try:
        if run.folder.artefact("study").status(verify=True).is_current and len(tables) == 1:
            return StudyResult(name=tables[0].stem, folder=run.folder.root.name, table=_table(tables[0]))
    except (OSError, ValueError, KeyError) as error:  # pandas'; of a record that somebody has written by hand
        stage.logger.debug("%s: %r", tables[0], error)
    stage.logger.warning("%s: the study's table is not what it wrote; the report leaves it out", run.folder.root)
    return None


def _table(file: Path) -> pd.DataFrame:
    table = pd.read_csv(file, index_col="variant").rename(index=lambda name: str(name).replace("_", " "))
    table[_NUMBERS] = table[_NUMBERS].astype(float)
    for column, empty in _EMPTY_TEXTS.items():
        table[column] = [empty if pd.isna(value) else str(value) for value in table[column]]
    return table[[name for name in table.columns if name in COLUMNS]]
