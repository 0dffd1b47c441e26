"""Chosen columns of a table in a text file or in Parquet, and where in the file a row stands."""

import csv
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.core.datasets.base import read_decoded, shorten
from src.core.datasets.timestamps import BadTime, parse_times
from src.core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

PARQUET_ENDINGS = (".parquet", ".pq")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a table lies in its file.

    Attributes:
        names: the name of each column that is wanted, by what it is for: `user`, `item`, `timestamp`, `title`.
        separator: of a text file, one character.
        header: names of all columns of a text file whose first line has none.
        setting: the key under which the user gives `names`, for messages; "" where they are fixed.
    """

    names: dict[str, str]
    separator: str = ","
    header: tuple[str, ...] | None = None
    setting: str = "dataset.columns"


@dataclass(frozen=True, kw_only=True)
class Table:
    """The wanted columns.

    Attributes:
        columns: object (str) [N] by what they are for; `timestamp` may be int64 or float64.
        where: file and place of a row, for messages.
    """

    columns: dict[str, np.ndarray]
    where: Callable[[int], str]

    def times(self) -> np.ndarray:
        """The column `timestamp`, int64 or float64 [N].

        Raises:
            UserError: naming the row of what is not a time.
        """
        cells = self.columns["timestamp"]
        try:
            if cells.dtype == object:
                return parse_times(cells)
            if not np.isfinite(cells).all():
                row = int(np.flatnonzero(~np.isfinite(cells))[0])
                raise BadTime(row, f"timestamp {float(cells[row])!r} is not a number or an ISO 8601 date")
            return cells
        except BadTime as error:
            raise UserError(f"{self.where(error.row)}: {error}; correct or remove the line") from None

    def require_text(self, name: str) -> None:
        """Refuse an empty cell in a column."""
        empty = np.flatnonzero(self.columns[name] == "")
        if len(empty):
            raise UserError(f"{self.where(int(empty[0]))}: the {name} is empty; correct or remove the line")


def read_table(path: Path, layout: Layout, *, strict: bool = False) -> Table:
    """Read the wanted columns of a table, as text but for times in Parquet.

    Args:
        strict: every row of a text file must be as long as the header. It takes longer; else a row that is longer is
            refused, and what is missing in a shorter one is empty.

    Raises:
        UserError: naming the file, and the line if there is one, of what is wrong.
    """
    if path.suffix in PARQUET_ENDINGS:
        return _read_parquet(path, layout)
    return _read_text_strictly(path, layout) if strict else _read_text(path, layout)


def _require_columns(where: str, layout: Layout, header: list[str]) -> None:
    prefix = f"{layout.setting}." if layout.setting else ""
    missing = [f"{prefix}{key}={name!r}" for key, name in layout.names.items() if name not in header]
    if missing:
        says = "is not a column" if len(missing) == 1 else "are not columns"
        raise UserError(f"{where}: {', '.join(missing)} {says}; the file has {shorten(', '.join(header), 400)}")


# --- text ---------------------------------------------------------------------------------------------------


def _read_text(path: Path, layout: Layout) -> Table:
    import pandas as pd  # a second that only a log costs, not what was processed before

    try:
        frame = _parse(path, layout)
    except (ValueError, pd.errors.ParserWarning) as error:
        for _ in _rows(path, layout)[1]:  # which names the line
            pass
        raise UserError(f"{path}: cannot be read: {shorten(str(error))}") from None
    _require_columns(f"{path}:1", layout, list(map(str, frame.columns)))
    columns = {key: frame[name].to_numpy() for key, name in layout.names.items()}

    def where(row: int) -> str:
        """Reads the file again, slowly; a line before it that is cut short is the first fault and is told instead."""
        found = next((line for i, (line, _) in enumerate(_rows(path, layout)[1]) if i == row), None)
        return f"{path}: row {row + 1}" if found is None else f"{path}:{found}"

    return Table(columns=columns, where=where)


def _parse(path: Path, layout: Layout) -> "pd.DataFrame":
    import pandas as pd

    text = read_decoded(path, "utf-8-sig")
    names = None if layout.header is None else list(layout.header)
    with warnings.catch_warnings():
        # A first line that is longer than the header is only warned about, and cut.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(
            io.StringIO(text),
            sep=layout.separator,
            names=names,
            header="infer" if names is None else None,
            dtype=str,
            na_filter=False,
            index_col=False,
        )


def _read_text_strictly(path: Path, layout: Layout) -> Table:
    header, rows = _rows(path, layout)
    _require_columns(f"{path}:1", layout, header)
    places = {key: header.index(name) for key, name in layout.names.items()}
    lines: list[int] = []
    cells: dict[str, list[str]] = {key: [] for key in places}
    for line, fields in rows:
        lines.append(line)
        for key, place in places.items():
            cells[key].append(fields[place])
    columns = {key: np.array(values, dtype=object) for key, values in cells.items()}
    return Table(columns=columns, where=lambda row: f"{path}:{lines[row]}")


def _rows(path: Path, layout: Layout) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header and (line number, fields) of each row, every row checked to be as long as the header."""
    separator = layout.separator
    reader = csv.reader(io.StringIO(read_decoded(path, "utf-8-sig"), newline=""), delimiter=separator)
    header = next(reader, []) if layout.header is None else list(layout.header)

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for fields in reader:
                if not "".join(fields).strip() and len(fields) <= 1:  # a blank line, which pandas skips, too
                    continue
                if len(fields) != len(header):
                    raise UserError(
                        f"{path}:{reader.line_num}: has {len(fields)} fields, expected {len(header)} "
                        f"({separator.join(header)}); put quotes round a field that contains {separator!r}"
                    )
                yield reader.line_num, fields
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: {error}") from None

    return header, rows()


# --- Parquet ------------------------------------------------------------------------------------------------


def _read_parquet(path: Path, layout: Layout) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            f"{path}: reading Parquet needs pyarrow, which cannot be imported ({error}); install it by poetry install "
            "--extras parquet, or write the table as CSV"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            _require_columns(str(path), layout, file.schema_arrow.names)
            table = file.read(columns=list(layout.names.values()))
        columns = {
            key: (_times if key == "timestamp" else _texts)(table.column(name), path, name)
            for key, name in layout.names.items()
        }
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read ({shorten(str(error))})") from None
    return Table(columns=columns, where=lambda row: f"{path}: row {row + 1}")


def _texts(column: Any, path: Path, name: str) -> np.ndarray:
    """Text or integers as object (str) [N]; what is missing is empty."""
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    readable = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_integer)
    if not any(test(kind) for test in readable):
        raise UserError(f"{path}: the column {name!r} holds {kind}, must be text or integers")
    return column.cast(kind).cast(pa.string()).fill_null("").to_numpy()


def _times(column: Any, path: Path, name: str) -> np.ndarray:
    """Integers, points in time (in the column's unit) and days as int64 [N], fractions as float64, text as it is."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if column.null_count:
        row = next(i for i, value in enumerate(column) if not value.is_valid)
        raise UserError(f"{path}: row {row + 1}: the timestamp is missing; correct or remove the row")
    if pa.types.is_date32(kind):
        column, kind = column.cast(pa.int32()), pa.int32()
    if pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date64(kind):
        return column.cast(pa.int64()).to_numpy()
    if pa.types.is_floating(kind):
        return column.cast(pa.float64()).to_numpy()
    if pa.types.is_decimal(kind):
        return column.cast(pa.string()).to_numpy()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.to_numpy()
    raise UserError(f"{path}: the column {name!r} holds {kind}, must be numbers, points in time or text")
