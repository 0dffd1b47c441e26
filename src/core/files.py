"""Files that appear whole or not at all."""

import hashlib
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from src.core.errors import UserError

_MAX_LEVELS = 50  # of lists in objects in lists: what walks through them need not be afraid of the stack
LOCK_FILE = ".lock"  # in a folder that one process at a time may write to: see `src.core.artefacts.locked`
_PROBE = bytes(1 << 16)
_RUST = re.compile(r"\b(?:os error|Os \{ code:) (\d+)")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What is done in the block writes `path`, a file or a folder.

    Raises:
        UserError: the disk is full or may not be written to, in whatever words a library says so.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = _cause(error, path.parent)
        if cause is None:
            raise
        _clear(error)
        raise UserError(
            f"{path}: cannot be written ({cause.strerror or cause}); files written before are whole, make room or "
            "choose another folder and start the stage again"
        ) from error


def _cause(error: Exception, folder: Path) -> OSError | None:
    """The error of the operating system behind a library's own, if there is one.

    What is written in Rust (safetensors, tokenizers) names its number. PyTorch only says that a write failed, so the
    disk is asked.
    """
    if isinstance(error, OSError):
        return error
    if number := _RUST.search(str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(_PROBE)
    except OSError as refusal:
        return refusal
    return None


def _clear(error: Exception) -> None:
    """Drop what was being written: a ZIP archive that is dropped later complains of its closed file, with a trace."""
    show = sys.unraisablehook
    sys.unraisablehook = lambda arguments: None
    try:
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__context__
    finally:
        sys.unraisablehook = show


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary)` make the file beside `path`, then move it into place.

    Raises:
        UserError: the disk is full or the folder cannot be written to; what was at `path` is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode  # as the umask has it: safetensors makes files that others may not read
            write(temporary)
            temporary.chmod(mode)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # there is an error already, of the same disk
            temporary.unlink(missing_ok=True)


def write_hashed(path: Path, write: Callable[[Path], object]) -> str:
    """`write_atomic`, and the hex SHA-256 of what was written: by the time one reads it again it may be another's."""
    digests = []

    def write_and_hash(temporary: Path) -> None:
        write(temporary)
        digests.append(sha256_file(temporary))

    write_atomic(path, write_and_hash)
    return digests[0]


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes have left of `write_atomic` below a folder that this process has locked.

    A folder below it that has a lock of its own is left alone: somebody else may be writing there.
    """
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not (Path(where) / name / LOCK_FILE).exists()]
        for name in names:
            if name.startswith(".") and name.endswith(".part"):
                (Path(where) / name).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are errors, not silent extensions of the format."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON: what `write_json` could have written, so that it can be written again.

    Raises:
        UserError: the file is missing, cannot be read, or is not JSON.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_number, parse_float=_finite)
        _check_node(value, 0)
        return value
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing file") from error
    except (OSError, ValueError, RecursionError) as error:  # of JSON, of UTF-8, of an integer of 4301 digits
        raise UserError(f"{path}: not a JSON file ({error}); delete it and make it again") from error


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text:.20} is no number that JSON has")


def _finite(text: str) -> float:
    """`json` makes infinity of 1e999."""
    number = float(text)
    return number if isfinite(number) else _refuse_number(text)


def _check_node(value: Any, level: int) -> None:
    """Refuse what is nested too deep, and half characters (`\\ud83d`), which no file can hold."""
    if isinstance(value, str):
        if not value.isascii():
            value.encode()
    elif isinstance(value, list | dict):
        if level == _MAX_LEVELS:
            raise ValueError(f"more than {_MAX_LEVELS} levels")
        for part in value:
            _check_node(part, level + 1)
        for part in value.values() if isinstance(value, dict) else ():
            _check_node(part, level + 1)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class Sighting:
    """How files looked before they were read: what is read or hashed until `require_same` is of one time.

    Attributes:
        found: inode, size and time of each file, of a folder each in it; none of what was not there.
    """

    paths: tuple[Path, ...]
    found: dict[Path, tuple[int, int, int]]

    @classmethod
    def of(cls, *paths: Path | None) -> "Sighting":
        """Of the files, and of those that lie in the folders; None stands for nothing."""
        given = tuple(path for path in paths if path is not None)
        return cls(given, {file: _look(file) for path in given for file in _files(path)})

    def require_same(self) -> None:
        """To be asked once all is read.

        Raises:
            UserError: a file has been changed, replaced, added or removed meanwhile.
        """
        now = Sighting.of(*self.paths).found
        for path in sorted(self.found.keys() | now.keys()):
            if self.found.get(path) != now.get(path):
                raise UserError(
                    f"{path}: was changed while it was read; start the same command again, once nobody writes there"
                )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path] if path.is_file() else []
    return [file for file in path.iterdir() if not file.name.startswith(".") and file.is_file()]


def _look(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
