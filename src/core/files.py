"""Files that appear whole or not at all."""

import hashlib
import json
import os
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

from src.core.errors import UserError

_MAX_LEVELS = 50  # of lists in objects in lists: what walks through them need not be afraid of the stack
LOCK_FILE = ".lock"  # in a folder that one process at a time may write to: see `src.core.artefacts.locked`


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary)` make the file beside `path`, then move it into place.

    Raises:
        UserError: the disk is full or the folder cannot be written to; what was at `path` is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); files written before are whole, make room or "
            "choose another folder and start the stage again"
        ) from error
    finally:
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
