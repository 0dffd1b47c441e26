"""Any log of user, item, timestamp with a table of titles, in text files with a header line or in Parquet."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from src.core.datasets.base import Ids, Interactions, LogConfig, likeness, plain_or_gzipped
from src.core.datasets.sound_text import QUOTING, Layout
from src.core.datasets.tables import Table, read_table
from src.core.errors import UserError, check

MISSING_TITLES = ("refuse", "name")


@dataclass(frozen=True, kw_only=True)
class CsvColumns:
    """Names of the columns.

    Attributes:
        user, timestamp: in the log; title: in the table of titles; item: in both.
    """

    user: str = "user"
    item: str = "item"
    timestamp: str = "timestamp"
    title: str = "title"

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            check(value != "", f"dataset.columns.{key}", value, "the name of a column")
        log_columns = [self.user, self.item, self.timestamp]
        check(len(set(log_columns)) == 3, "dataset.columns", log_columns, "user, item and timestamp must differ")


@dataclass(frozen=True, kw_only=True)
class CsvConfig(LogConfig):
    """`conf/dataset/csv.yaml`.

    Attributes:
        interactions_file, titles_file: file names in the raw folder; `.parquet` tells that format.
        separator: one character; `\\t` as two is a tab, for a shell and Hydra pass both on.
        quoting: of text files, `minimal` or `none`: quotes are then characters like any other, as in RecBole's files.
        columns: see `CsvColumns`.
        missing_titles: of an item that the table of titles lacks: `refuse` the log, or `name` the item after its id.
    """

    source: str = "csv"
    name: str = "csv"
    interactions_file: str = "interactions.csv"
    titles_file: str = "items.csv"
    separator: str = ","
    quoting: str = "minimal"
    columns: CsvColumns = field(default_factory=CsvColumns)
    missing_titles: str = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("interactions_file", "titles_file"):
            check(getattr(self, key) != "", f"dataset.{key}", "", "the name of a file")
        separator = one_character(self.separator)
        usable = len(separator) == 1 and separator not in "\r\n\"'" and not separator.isalnum()
        check(usable, "dataset.separator", self.separator, 'one character such as "," or "\\t"')
        check(self.quoting in QUOTING, "dataset.quoting", self.quoting, f"one of {', '.join(QUOTING)}")
        check(self.missing_titles in MISSING_TITLES, "dataset.missing_titles", self.missing_titles, "refuse or name")


def one_character(separator: str) -> str:
    """The separator with a written-out tab as the character itself.

    >>> one_character("\\\\t"), one_character(";")
    ('\\t', ';')
    """
    return "\t" if separator == "\\t" else separator


class CsvLog:
    """The source of a user's own data."""

    config = CsvConfig

    def archive(self, config: CsvConfig) -> None:
        return None

    def files(self, config: CsvConfig, folder: Path) -> list[Path]:
        return [plain_or_gzipped(folder / name) for name in (config.interactions_file, config.titles_file)]

    def read(self, config: CsvConfig, folder: Path) -> Interactions:
        return read_csv(
            *self.files(config, folder),
            separator=one_character(config.separator),
            quoting=config.quoting,
            columns=config.columns,
            missing_titles=config.missing_titles,
        )


def read_csv(
    interactions: Path,
    titles: Path,
    *,
    separator: str,
    columns: CsvColumns,
    quoting: str = "minimal",
    missing_titles: str = "refuse",
) -> Interactions:
    """Read a log and a table of titles: ids as text; times int64, or float64 where one has a fraction.

    Args:
        interactions: file with a user, an item and a timestamp (a number or a date, see `timestamps`) in each line;
            other columns are ignored.
        titles: file with an item and a title in each line, no item twice; with `missing_titles=refuse` every item of
            the log must be in it.
        separator: one character, of text files.
        quoting: of text files, see `CsvConfig`.

    Raises:
        UserError: naming file and line of what is wrong.
    """
    names = {"item": columns.item, "title": columns.title}
    title_of = _read_titles(titles, Layout(names=names, separator=separator, quoting=quoting))
    names = {"user": columns.user, "item": columns.item, "timestamp": columns.timestamp}
    log = read_table(interactions, Layout(names=names, separator=separator, quoting=quoting))
    if not len(log.texts("user")):
        raise UserError(f"{interactions}: has no interactions; add lines below the header")
    users, items = log.required("user"), log.required("item")
    times = log.times()
    warnings = _missing_titles(log, items, title_of, titles, refuse=missing_titles == "refuse")
    warnings += _rounded_times(times, interactions)
    return Interactions(users=users, items=items, timestamps=times, titles=title_of, warnings=warnings)


def _rounded_times(times: np.ndarray, path: Path) -> tuple[str, ...]:
    """What to warn of, where times came as floating-point numbers that cannot tell neighbours apart."""
    rounded = int((np.abs(times) >= 2**53).sum()) if times.dtype == np.float64 else 0
    if not rounded:
        return ()
    return (f"{path.name}: {rounded} times are floating-point numbers beyond 2**53, which are rounded; write integers",)


def _missing_titles(log: Table, items: Ids, titles: dict[str, str], path: Path, *, refuse: bool) -> tuple[str, ...]:
    """What to warn of, where the table of titles lacks items of the log."""
    untitled = [code for code, item in enumerate(items.values) if item not in titles]
    if not untitled:
        return ()
    item = items.values[untitled[0]]  # they are in the order of the log
    counted = f"{len(untitled)} of the log's {len(items.values)} items have none there"
    like = _alike(item, titles)
    meant = f"; did you mean {like!r}? Write ids alike in both files" if like is not None else ""
    if not refuse:
        return (f"{path.name}: {counted}, first item {item!r}{meant}",)
    advice = meant or "; add one, or set dataset.missing_titles=name"
    where = log.where(int(items.first_rows()[untitled[0]]))
    raise UserError(f"{where}: item {item!r} has no entry in {path} ({counted}){advice}")


def _alike(item: str, titles: dict[str, str]) -> str | None:
    """An id of the titles that may be the same one, written in another way: `12.0` for `12`, other blanks or case."""
    wanted = likeness(item)
    return next((other for other in titles if likeness(other) == wanted), None)


def _read_titles(path: Path, layout: Layout) -> dict[str, str]:
    import pandas as pd

    table = read_table(path, layout, strict=True)
    items = table.texts("item")
    again = np.flatnonzero(pd.Series(items.codes).duplicated())
    if len(again):
        row = int(again[0])
        item = items.values[items.codes[row]]
        raise UserError(f"{table.where(row)}: item {item!r} occurs twice; remove one of its lines")
    return dict(zip(items.tolist(), table.texts("title").tolist(), strict=True))
