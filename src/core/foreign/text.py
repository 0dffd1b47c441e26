"""Text files by strangers, unzipped, decoded and checked in one way, whoever reads them.

UTF-8 with or without byte order mark, gzipped or not, as the bytes tell and not the name. A file that is not UTF-8 is
refused, or read as the one other encoding that its publisher uses. NUL characters are refused: pandas and C end a text
there, so that two ids would become one.
"""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, cast

from src.core.errors import UserError

_GZIP: Final = b"\x1f\x8b"
_WIDE: Final = {  # byte order marks; the longer ones first
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_NO_TEXT: Final = {
    b"version https://git-lfs": "a Git LFS pointer instead of the file; run `git lfs pull` where it comes from",
    b"PK\x03\x04": "a ZIP archive or an Excel workbook; unpack it, or save it as text",
    b"PAR1": "a Parquet file; let its name end in .parquet",
}
DAMAGED: Final = (EOFError, gzip.BadGzipFile, zlib.error)  # what reading a damaged gzip file raises


def open_unzipped(path: Path) -> IO[bytes]:
    """The bytes of a file, unzipped where they are gzipped: some downloads unzip a file and leave it its name.

    Raises:
        UserError: the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            is_zipped = file.read(len(_GZIP)) == _GZIP
        return cast(IO[bytes], gzip.open(path, "rb")) if is_zipped else path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_bytes(path: Path) -> bytes:
    """A whole file, unzipped.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    try:
        with open_unzipped(path) as file:
            return file.read()
    except DAMAGED as error:
        raise UserError(f"{path}: damaged ({error}); replace it by a complete copy") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def without_mark(path: Path, data: bytes) -> bytes:
    """What a file begins with, without UTF-8's byte order mark.

    Raises:
        UserError: the mark of another encoding, or of what is no text.
    """
    for mark, what in _NO_TEXT.items():
        if data.startswith(mark):
            raise UserError(f"{path}: is {what}")
    for mark, name in _WIDE.items():
        if data.startswith(mark):
            raise UserError(f"{path}: is {name} text; save it as UTF-8")
    return data.removeprefix(codecs.BOM_UTF8)


def read_text(path: Path, otherwise: str | None = None) -> str:
    """The text of a file.

    Args:
        otherwise: encoding of a file that is not UTF-8; None refuses it.

    Raises:
        UserError: naming the line that is no text or has a NUL; or a damaged file.
    """
    data = without_mark(path, read_bytes(path))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if otherwise is None:
            line = data.count(b"\n", 0, error.start) + 1
            raise UserError(
                f"{path}:{line}: not valid UTF-8 text (byte 0x{data[error.start]:02x}); save the file as UTF-8"
            ) from None
        text = data.decode(otherwise)
    if (place := text.find("\0")) >= 0:
        raise nul_error(f"{path}:{text.count(chr(10), 0, place) + 1}")
    return text


def text_pieces(path: Path, size: int) -> Iterator[bytes]:
    """A sound UTF-8 file as pieces of whole lines, each about `size` bytes long: together what `read_text` has.

    Raises:
        UserError: it is not sound: `read_text` says why.
        OSError, EOFError, zlib.error: it cannot be read, or is damaged.
    """
    rest, is_first = b"", True
    with open_unzipped(path) as file:
        while more := file.read(size):
            data = without_mark(path, rest + more) if is_first else rest + more
            end = data.rfind(b"\n") + 1
            rest, is_first = data[end:], False
            yield from _sound(path, data[:end])
    yield from _sound(path, rest)


def _sound(path: Path, piece: bytes) -> list[bytes]:
    """The piece, if there is anything in it."""
    try:
        piece.isascii() or piece.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not valid UTF-8 text") from None
    if b"\0" in piece:
        raise nul_error(str(path))
    return [piece] if piece else []


def nul_error(where: str) -> UserError:
    """The refusal of a NUL at a place in a file."""
    return UserError(f"{where}: holds a NUL character; remove it, or save the file as UTF-8 if it is UTF-16")


def numbered_lines(path: Path, otherwise: str | None = None) -> Iterator[tuple[int, str]]:
    r"""(line number, line without its end: `\n`, `\r\n` or `\r`) of the lines that are not blank, as `read_text`."""
    text = read_text(path, otherwise).replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line
