"""Any log of user, item, timestamp with a table of titles, both with a header line."""

import csv
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.core.datasets.base import Interactions, LogConfig, read_decoded, shorten
from src.core.errors import UserError, check

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class CsvColumns:
    """Names of the columns; `item` stands in both files."""

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
        interactions_file, titles_file: file names in the raw folder.
        separator: one character; `\\t` as two is a tab, for a shell and Hydra pass both on.
        columns: see `CsvColumns`.
    """

    name: str = "csv"
    interactions_file: str = "interactions.csv"
    titles_file: str = "items.csv"
    separator: str = ","
    columns: CsvColumns = field(default_factory=CsvColumns)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("interactions_file", "titles_file"):
            check(getattr(self, key) != "", f"dataset.{key}", "", "the name of a file")
        separator = one_character(self.separator)
        usable = len(separator) == 1 and separator not in "\r\n\"'" and not separator.isalnum()
        check(usable, "dataset.separator", self.separator, 'one character such as "," or "\\t"')


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
        return [folder / config.interactions_file, folder / config.titles_file]

    def read(self, config: CsvConfig, folder: Path) -> Interactions:
        return read_csv(*self.files(config, folder), separator=one_character(config.separator), columns=config.columns)


def read_csv(interactions: Path, titles: Path, *, separator: str, columns: CsvColumns) -> Interactions:
    """Read a log and a table of titles: ids as text; times int64, or float64 where one has a fraction.

    Args:
        interactions: file with a user, an item and a timestamp (a number) in each line; other columns are ignored.
        titles: file with an item and a title in each line; every item of the log must be in it once.
        separator: one character.

    Raises:
        UserError: naming file and line of what is wrong.
    """
    import pandas as pd  # a second that only a log costs, not what was processed before

    title_of = _read_titles(titles, separator, columns)
    names = {"user": columns.user, "item": columns.item, "timestamp": columns.timestamp}
    scan = _LogScan(path=interactions, titles_path=titles, separator=separator, names=names, titles=title_of)
    try:
        frame = _parse_log(interactions, separator)
    except (ValueError, pd.errors.ParserWarning) as error:
        scan.raise_first_error()
        raise UserError(f"{interactions}: cannot be read: {shorten(str(error))}") from None
    for key, column in names.items():
        _column_place(interactions, list(frame.columns), key, column)
    if frame.empty:
        raise UserError(f"{interactions}: has no interactions; add lines below the header")
    users, items = frame[columns.user].to_numpy(), frame[columns.item].to_numpy()
    times = pd.to_numeric(frame[columns.timestamp], errors="coerce").to_numpy()
    are_titled = pd.Series(frame[columns.item].unique()).isin(title_of.keys()).all()
    if not (are_titled and np.isfinite(times).all() and (users != "").all() and (items != "").all()):
        scan.raise_first_error()
        raise UserError(f"{interactions}: has a line that cannot be used")
    return Interactions(users=users, items=items, timestamps=times, titles=title_of)


def _parse_log(path: Path, separator: str) -> "pd.DataFrame":
    import pandas as pd

    text = read_decoded(path, "utf-8-sig")
    with warnings.catch_warnings():
        # A first line that is longer than the header is only warned about, and cut.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(io.StringIO(text), sep=separator, dtype=str, na_filter=False, index_col=False)


def _column_place(path: Path, header: list[str], key: str, column: str) -> int:
    """Place in the header of the column that `dataset.columns.<key>` names."""
    if column not in header:
        raise UserError(
            f"{path}:1: dataset.columns.{key}={column!r} is not a column; the file has "
            f"{', '.join(map(str, header))}"
        )
    return header.index(column)


def _csv_rows(path: Path, separator: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header and (line number, fields) of each row, every row checked to be as long as the header."""
    reader = csv.reader(io.StringIO(read_decoded(path, "utf-8-sig"), newline=""), delimiter=separator)
    header = next(reader, [])

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for fields in reader:
                if fields and len(fields) != len(header):
                    raise UserError(
                        f"{path}:{reader.line_num}: has {len(fields)} fields, expected {len(header)} "
                        f"({separator.join(header)}); put quotes round a field that contains {separator!r}"
                    )
                if fields:
                    yield reader.line_num, fields
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: {error}") from None

    return header, rows()


def _read_titles(path: Path, separator: str, columns: CsvColumns) -> dict[str, str]:
    header, rows = _csv_rows(path, separator)
    item_place = _column_place(path, header, "item", columns.item)
    title_place = _column_place(path, header, "title", columns.title)
    titles: dict[str, str] = {}
    for line, fields in rows:
        item = fields[item_place]
        if item in titles:
            raise UserError(f"{path}:{line}: item {item!r} occurs twice; remove one of its lines")
        titles[item] = fields[title_place]
    return titles


@dataclass(frozen=True, kw_only=True)
class _LogScan:
    """Reads a log line by line, slowly, to name the line at which the fast parser or a check failed.

    Attributes:
        names: the columns by their key in `dataset.columns`.
        titles: title by item.
    """

    path: Path
    titles_path: Path
    separator: str
    names: dict[str, str]
    titles: dict[str, str]

    def raise_first_error(self) -> None:
        header, rows = _csv_rows(self.path, self.separator)
        places = {key: _column_place(self.path, header, key, column) for key, column in self.names.items()}
        for line, fields in rows:
            self._check(line, {key: fields[place] for key, place in places.items()})

    def _check(self, line: int, row: dict[str, str]) -> None:
        import pandas as pd

        where = f"{self.path}:{line}"
        for key in ("user", "item"):
            if row[key] == "":
                raise UserError(f"{where}: the {key} is empty; correct or remove the line")
        if not np.isfinite(pd.to_numeric(pd.Series([row["timestamp"]]), errors="coerce")).all():
            raise UserError(f"{where}: timestamp {row['timestamp']!r} is not a number; correct or remove the line")
        if row["item"] not in self.titles:
            raise UserError(f"{where}: item {row['item']!r} has no entry in {self.titles_path}; add one")
