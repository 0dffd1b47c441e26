"""Wanted columns of a text file in which nothing is doubtful, read in pieces: a log may be larger than the memory."""

import codecs
import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from src.core.datasets.base import Ids
from src.core.errors import UserError
from src.core.foreign.text import DAMAGED, text_pieces

if TYPE_CHECKING:
    import pyarrow as pa

QUOTING: dict[str, Literal[0, 3]] = {"minimal": csv.QUOTE_MINIMAL, "none": csv.QUOTE_NONE}  # of text files
_PIECE = 1 << 27  # bytes
_BLOCK = 1 << 24  # bytes of a piece that a thread reads at once


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a table lies in its file.

    Attributes:
        names: the name of each column that is wanted, by what it is for: `user`, `item`, `timestamp`, `title`.
        separator: of a text file, one character.
        quoting: of a text file, a key of `QUOTING`.
        header: names of all columns of a text file whose first line has none.
        setting: the key under which the user gives `names`, for messages; "" where they are fixed.
    """

    names: dict[str, str]
    separator: str = ","
    quoting: str = "minimal"
    header: tuple[str, ...] | None = None
    setting: str = "dataset.columns"


class Columns:
    """The wanted columns, part by part: of times those that are integers as such, of all else each text once."""

    def __init__(self, layout: Layout) -> None:
        nothing = Ids.of(np.array([], dtype=object))
        self._parts: dict[str, list[Ids | np.ndarray]] = {key: [nothing] for key in layout.names}

    def add(self, key: str, texts: "pa.ChunkedArray") -> None:
        """Only what is written as an integer is can become text again, where times of another part are none."""
        self._parts[key].append(_integers(texts) if key == "timestamp" and _are_integers(texts) else ids_of(texts))

    def joined(self) -> dict[str, Ids | np.ndarray]:
        """Ids, or int64 [N] where all are integers."""
        return {key: self._join(parts) for key, parts in self._parts.items()}

    @staticmethod
    def _join(parts: list[Ids | np.ndarray]) -> Ids | np.ndarray:
        numbers = [part for part in parts if isinstance(part, np.ndarray)]
        texts = [part for part in parts if isinstance(part, Ids) and len(part)]
        if numbers and not texts:
            return np.concatenate(numbers)
        written = (p if isinstance(p, Ids) else Ids.of(p.astype(str).astype(object)) for p in parts)
        return Ids.joined(list(written))


def read_sound_text(path: Path, layout: Layout) -> dict[str, Ids | np.ndarray] | None:
    """The wanted columns, as `Columns.joined` has them; None where anything is doubtful.

    Doubtful is what is damaged or no text, rows of another length than the header, quotes other than round whole
    fields within a line. Who reads such a file with care says what is wrong, or what was meant.
    """
    import pyarrow as pa

    if not layout.separator.isascii():  # pyarrow takes one byte
        return None
    columns, header = Columns(layout), layout.header
    try:
        for piece in text_pieces(path, _PIECE):
            skip = header is None
            header = _header(piece, layout) if header is None else header
            if piece.startswith(codecs.BOM_UTF8) or not _is_soundly_quoted(piece, layout):  # pyarrow drops the mark
                return None
            table = _parse(piece, layout, header, skip=skip)
            for key, name in layout.names.items():
                columns.add(key, table.column(name))
    except (UserError, ValueError, OSError, csv.Error, pa.ArrowException, *DAMAGED):
        return None
    return columns.joined() if header else None


def _header(piece: bytes, layout: Layout) -> tuple[str, ...]:
    """The fields of the first line.

    Raises:
        ValueError: it is not what a table with these columns begins with.
    """
    line = re.match(rb"[^\r\n]*", piece)[0].decode()  # type: ignore[index]  # which matches nothing, too
    header = next(csv.reader([line], delimiter=layout.separator, quoting=QUOTING[layout.quoting]), [])
    if any(header.count(name) != 1 for name in layout.names.values()):
        raise ValueError("no such columns")
    return tuple(header)


def _is_soundly_quoted(piece: bytes, layout: Layout) -> bool:
    """Whether quotes stand round whole fields of one line only, so that every line is a row."""
    if layout.quoting == "none" or b'"' not in piece:
        return True
    ends = re.escape(layout.separator).encode() + rb"\r\n"
    field = rb'(?<![^%b])"[^"\r\n]*+(?:""[^"\r\n]*+)*+"(?![^%b])' % (ends, ends)
    return b'"' not in re.sub(field, b"", piece)


def _parse(piece: bytes, layout: Layout, header: Iterable[str], *, skip: bool) -> "pa.Table":
    """The wanted columns as text."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    names = list(layout.names.values())
    return arrow.read_csv(
        pa.BufferReader(piece),
        arrow.ReadOptions(column_names=list(header), skip_rows=int(skip), block_size=_BLOCK),
        arrow.ParseOptions(delimiter=layout.separator, quote_char=False if layout.quoting == "none" else '"'),
        arrow.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, pa.string())),
    )


def ids_of(texts: "pa.ChunkedArray") -> Ids:
    encoded = texts.dictionary_encode().combine_chunks()
    return Ids(encoded.indices.to_numpy(), encoded.dictionary.to_numpy(zero_copy_only=False))


def _are_integers(texts: "pa.ChunkedArray") -> bool:
    """Whether all are digits without a zero in front, and few enough for 64 bits."""
    import pyarrow.compute as pc

    is_one = pc.and_not(pc.ascii_is_decimal(texts), pc.starts_with(texts, "0"))
    return bool(pc.all(is_one).as_py()) and (pc.max(pc.binary_length(texts)).as_py() or 0) <= 18


def _integers(texts: "pa.ChunkedArray") -> np.ndarray:
    import pyarrow as pa

    return texts.cast(pa.int64()).to_numpy()
