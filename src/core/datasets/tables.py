"""Chosen columns of a table in a text file or in Parquet, and where in the file a row stands."""

import csv
import io
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.core.datasets.base import Ids, shorten
from src.core.datasets.sound_text import QUOTING, Columns, Layout, ids_of, read_sound_text
from src.core.datasets.timestamps import BadTime, parse_times
from src.core.errors import UserError
from src.core.foreign.text import nul_error, read_text

if TYPE_CHECKING:
    import pandas as pd

PARQUET_ENDINGS = (".parquet", ".pq")
_ROWS = 1 << 20  # of a doubtful text file that are read at once


@dataclass(frozen=True, kw_only=True)
class Table:
    """The wanted columns.

    Attributes:
        columns: Ids by what they are for; `timestamp` may be int64 or float64 [N].
        where: file and place of a row, for messages.
    """

    columns: dict[str, Ids | np.ndarray]
    where: Callable[[int], str]

    def texts(self, name: str) -> Ids:
        """A column that is text."""
        column = self.columns[name]
        assert isinstance(column, Ids)
        return column

    def times(self) -> np.ndarray:
        """The column `timestamp`, int64 or float64 [N].

        Raises:
            UserError: naming the row of what is not a time.
        """
        cells = self.columns["timestamp"]
        try:
            if isinstance(cells, Ids):
                return parse_times(cells)
            if not np.isfinite(cells).all():
                row = int(np.flatnonzero(~np.isfinite(cells))[0])
                raise BadTime(row, f"timestamp {float(cells[row])!r} is not a number or an ISO 8601 date")
            return cells
        except BadTime as error:
            raise UserError(f"{self.where(error.row)}: {error}; correct or remove the line") from None

    def required(self, name: str) -> Ids:
        """A column of text without an empty cell.

        Raises:
            UserError: naming the row of the first one.
        """
        column = self.texts(name)
        empty = np.flatnonzero(column.values == "")
        if len(empty):
            row = int(column.first_rows()[empty[0]])
            raise UserError(f"{self.where(row)}: the {name} is empty; correct or remove the line")
        return column


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
    wanted = {f"{prefix}{key}={name!r}": name for key, name in layout.names.items()}
    missing = {setting: name for setting, name in wanted.items() if name not in header}
    if missing:
        says = "is not a column" if len(missing) == 1 else "are not columns"
        has = shorten(", ".join(map(repr, header)), 400)
        raise UserError(f"{where}: {', '.join(missing)} {says}; the file has {has}{_hint(layout, missing, header)}")
    twice = next((setting for setting, name in wanted.items() if header.count(name) > 1), None)
    if twice:
        raise UserError(f"{where}: {twice} is the name of two columns; rename one")


def _hint(layout: Layout, missing: dict[str, str], header: list[str]) -> str:
    """What the header looks like: another separator, or names with blanks or in another case."""
    other = next((sign for sign in "\t;|," if len(header) == 1 and sign in header[0]), None)
    if other and layout.setting:
        return f"; set dataset.separator={other!r} if that separates its columns"
    setting, name = next(iter(missing.items()))
    close = [column for column in header if column.strip().casefold() == name.strip().casefold()]
    close = close or get_close_matches(name, header, n=1)
    blank = " without the blanks" if close and close[0] != close[0].strip() else ""
    return f"; did you mean {close[0]!r}? Write it alike in both{blank}" if close else ""


# --- text ---------------------------------------------------------------------------------------------------


def _read_text(path: Path, layout: Layout) -> Table:
    columns = read_sound_text(path, layout)
    if columns is None:
        columns = _read_doubtful_text(path, layout)

    def where(row: int) -> str:
        """Reads the file again, slowly; a line before it that is cut short is the first fault and is told instead."""
        rows = _rows(path, read_text(path), layout)[1]
        found = next((line for i, (line, _) in enumerate(rows) if i == row), None)
        return f"{path}: row {row + 1}" if found is None else f"{path}:{found}"

    return Table(columns=columns, where=where)


def _read_doubtful_text(path: Path, layout: Layout) -> dict[str, Ids | np.ndarray]:
    import pandas as pd  # a second that only a log costs, not what was processed before
    import pyarrow as pa

    text = read_text(path)
    header, rows = _rows(path, text, layout)
    _require_columns(f"{path}:1", layout, header)
    columns = Columns(layout)
    try:
        for frame in _frames(text, header, layout):
            for key, name in layout.names.items():
                columns.add(key, pa.chunked_array([pa.array(frame[header.index(name)], pa.string())]))
    except (ValueError, pd.errors.ParserWarning) as error:
        _require_closed_quotes(path, text, layout, len(header))
        for _ in rows:  # which names the line
            pass
        raise UserError(f"{path}: cannot be read: {shorten(str(error))}") from None
    _require_closed_quotes(path, text, layout, len(header))
    return columns.joined()


def _frames(text: str, header: list[str], layout: Layout) -> Iterator["pd.DataFrame"]:
    """The cells as text, columns numbered, some rows at a time."""
    import pandas as pd

    if '"' not in text or "\n" not in text or layout.quoting == "none":  # else a mere \r may stand within a field
        # Where a line ends with it, pandas may take the header for a row, or lose the first field of the next line.
        text = re.sub(r"\r(?!\n)", "\n", text)
    with warnings.catch_warnings():
        # A first line that is longer than the header is only warned about, and cut.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        yield from pd.read_csv(
            io.BytesIO(text.encode()),
            sep=layout.separator,
            names=range(len(header)),
            header=0 if layout.header is None else None,
            dtype=str,
            na_filter=False,
            index_col=False,
            quoting=QUOTING[layout.quoting],
            chunksize=_ROWS,
        )


def _read_text_strictly(path: Path, layout: Layout) -> Table:
    text = read_text(path)
    header, rows = _rows(path, text, layout)
    _require_columns(f"{path}:1", layout, header)
    _require_closed_quotes(path, text, layout, len(header))
    places = {key: header.index(name) for key, name in layout.names.items()}
    lines: list[int] = []
    cells: dict[str, list[str]] = {key: [] for key in places}
    for line, fields in rows:
        lines.append(line)
        for key, place in places.items():
            cells[key].append(fields[place])
    columns: dict[str, Ids | np.ndarray] = {k: Ids.of(np.array(values, dtype=object)) for k, values in cells.items()}
    return Table(columns=columns, where=lambda row: f"{path}:{lines[row]}")


def _rows(path: Path, text: str, layout: Layout) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header and (line number, fields) of each row, every row checked to be as long as the header."""
    separator = layout.separator
    # Line by line, because StringIO would copy the text at four bytes a character.
    lines = (found[0] for found in re.finditer(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$", text))
    reader = csv.reader(lines, delimiter=separator, quoting=QUOTING[layout.quoting])
    header: list[str] = [] if layout.header is None else list(layout.header)

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for fields in reader:
                if not "".join(fields).strip() and len(fields) <= 1:  # a blank line, which pandas skips, too
                    continue
                if header and len(fields) != len(header):
                    advice = f"put quotes round a field that contains {separator!r}"
                    if len(fields) > len(header) and not "".join(fields[len(header) :]):
                        advice = f"take the {separator!r} off its end"
                    raise UserError(
                        f"{path}:{reader.line_num}: has {len(fields)} fields, expected {len(header)} "
                        f"({separator.join(header)}); {advice}"
                    )
                yield reader.line_num, fields
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: {error}") from None

    found = rows()
    if not header:
        header = next(found, (0, []))[1]
    return header, found


def _require_closed_quotes(path: Path, text: str, layout: Layout, num_columns: int) -> None:
    """Refuse quotes that swallow what follows them, which both parsers take for one long field.

    A field may go on in further lines, unless one of these has as many fields as a row.
    """
    if layout.quoting == "none" or '"' not in text:
        return
    ends = re.escape(layout.separator) + r"\r\n"
    field = re.compile(rf'(?<![^{ends}])"(?P<inner>[^"]*+(?:""[^"]*+)*+)(?P<close>"?)(?P<behind>[^{ends}]?)')
    rest = re.compile(r"[^\r\n]*")
    line = begin = place = 0
    while found := field.search(text, place):
        line, begin, place = line + _count_ends(text[begin : found.start()]), found.start(), found.end()
        more: list[str] = []
        if "\n" in found["inner"] or "\r" in found["inner"]:  # the lines that it goes on in, the last one to its end
            _, *more = re.split(r"\r\n|\r|\n", found[0] + rest.match(text, place)[0])  # type: ignore[index]
        if fault := _quote_fault(found, more, layout.separator, num_columns, last=line + 1 + len(more)):
            other = ", or set dataset.quoting=none where quotes are characters like any other" if layout.setting else ""
            raise UserError(
                f"{path}:{line + 1}: the quote that opens here {fault}; close it, write a quote within quotes "
                f"twice{other}"
            )


def _count_ends(text: str) -> int:
    return text.count("\n") + text.count("\r") - text.count("\r\n")


def _quote_fault(found: re.Match[str], more: list[str], separator: str, num_columns: int, *, last: int) -> str:
    """What is wrong with a quoted field, in words; `more` are the lines that it goes on in, `last` is their last."""
    if not found["close"]:
        return "is never closed"
    if found["behind"]:
        return f"is closed in line {last} with text behind it" if more else "is closed with text behind it"
    if any(line.count(separator) == num_columns - 1 for line in more):
        return f"is closed in line {last}, round lines that look like rows of their own"
    return ""


# --- Parquet ------------------------------------------------------------------------------------------------


def _read_parquet(path: Path, layout: Layout) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _require_columns(str(path), layout, file.schema_arrow.names)
            table = file.read(columns=list(layout.names.values()))
        columns = {
            key: (_times if key == "timestamp" else _texts)(table.column(name), path, name)
            for key, name in layout.names.items()
        }
    except (pyarrow.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:  # the last of texts
        raise UserError(f"{path}: not a Parquet file that can be read ({shorten(str(error))})") from None
    return Table(columns=columns, where=lambda row: f"{path}: row {row + 1}")


def _texts(column: Any, path: Path, name: str) -> Ids:
    """Text or integers as text; what is missing is empty."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    readable = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_integer)
    if not any(test(kind) for test in readable):
        raise UserError(f"{path}: the column {name!r} holds {kind}, must be text or integers")
    texts = column.cast(kind).cast(pa.string()).fill_null("")
    if (row := pc.index(pc.match_substring(texts, "\0"), True).as_py()) >= 0:
        raise nul_error(f"{path}: row {row + 1}: the column {name!r}")
    return ids_of(texts)


def _times(column: Any, path: Path, name: str) -> Ids | np.ndarray:
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
        return ids_of(column.cast(pa.string()))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return ids_of(column)
    raise UserError(f"{path}: the column {name!r} holds {kind}, must be numbers, points in time or text")
