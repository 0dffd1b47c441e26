"""Lines of objects by strangers, each JSON or, as Amazon Reviews 2014 has them, a Python literal. Nothing is evaluated.

`ast.literal_eval` was rejected: it takes minutes for a large catalogue, and deep nesting can end the process.
"""

import ast
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

from src.core.errors import UserError
from src.core.foreign.text import DAMAGED, nul_error, open_unzipped, without_mark

_MAX_LINE: Final = 1 << 24  # bytes; the longest published ones have some hundred thousand
_MAX_LEVELS: Final = 12  # of a Python literal below the object itself; the published ones have 3
_LITERAL: Final = re.compile(r"\{\s*(?:[uU]?')")  # JSON has double quotes; Python's repr has single ones round a key


def read_object_lines(path: Path, wanted: Collection[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank, of a file that may be gzipped.

    Args:
        wanted: fields of interest: of a Python literal only these are read, and of these what is nested stays text in a
            list of its own.

    Raises:
        UserError: naming the line that is too long, is no object, or has more than `_MAX_LEVELS` levels; or a damaged
            file.
    """
    line = 0
    try:
        with open_unzipped(path) as file:
            while data := file.readline(_MAX_LINE + 1):
                line += 1
                if line == 1:
                    data = without_mark(path, data)
                if len(data) > _MAX_LINE:
                    raise UserError(f"{path}:{line}: longer than {_MAX_LINE} bytes; correct or remove the line")
                if b"\0" in data:
                    raise nul_error(f"{path}:{line}")
                if data.strip():
                    yield line, _read_object(data.decode().strip(), wanted)
    except RecursionError:
        raise UserError(f"{path}:{line}: nested too deep; correct or remove the line") from None
    except _Malformed as error:
        raise UserError(f"{path}:{line}: {error}; correct or remove the line") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{line}: not valid UTF-8 text ({error.reason}); save the file as UTF-8") from None
    except ValueError as error:  # covers JSON errors
        raise UserError(f"{path}:{line}: not a line of JSON ({error}); correct or remove the line") from None
    except DAMAGED as error:
        raise UserError(f"{path}: damaged after line {line} ({error}); replace it by a complete copy") from None


class _Malformed(Exception):
    """A line is not what it looks like; the message says how."""


def _read_object(text: str, wanted: Collection[str]) -> dict[str, Any]:
    if _LITERAL.match(text):
        return _read_literal(text, wanted)
    value = json.loads(text)
    if not isinstance(value, dict):
        raise _Malformed(f"expected a JSON object, got {_start(text)}")
    return value


# --- Python literals ----------------------------------------------------------------------------------------

_STRING = r"""[uU]?(?:'(?:[^'\\]++|\\.)*+'|"(?:[^"\\]++|\\.)*+")"""
_WORD = r"""[^\s'"()\[\]{},:]++"""  # numbers, None, True, False


def _nested(levels: int) -> str:
    """A list, tuple or dictionary of at most so many levels. Its brackets need not match in kind: it is not read."""
    inner = f"|{_nested(levels - 1)}" if levels > 1 else ""
    return rf"""[\[({{](?:[^'"()\[\]{{}}]++|{_STRING}{inner})*+[\])}}]"""


_ENTRY: Final = re.compile(
    rf"\s*+(?P<key>{_STRING})\s*+:\s*+(?P<value>{_STRING}|{_WORD}|{_nested(_MAX_LEVELS)})\s*+(?P<end>,|\}})", re.DOTALL
)

_END: Final = re.compile(r"\s*\}$")


def _read_literal(text: str, wanted: Collection[str]) -> dict[str, Any]:
    """The wanted fields of a dictionary in Python's notation."""
    found: dict[str, Any] = {}
    place, end = 1, ","
    while end == ",":
        if _END.match(text, place):  # behind a last comma
            return found
        entry = _ENTRY.match(text, place)
        if entry is None:
            raise _Malformed(
                f"not a Python literal of at most {_MAX_LEVELS} levels from character {place + 1} on "
                f"({_start(text[place:].strip())})"
            )
        key = _scalar(entry["key"])
        if key in wanted:
            found[key] = _scalar(entry["value"])
        place, end = entry.end(), entry["end"]
    if place != len(text):
        raise _Malformed(f"goes on behind its object at character {place + 1} ({_start(text[place:])})")
    return found


_WORDS: Final = {"None": None, "True": True, "False": False}


def _scalar(token: str) -> Any:
    if token[0] in "[({":
        return [token]
    if token[-1] in "'\"":
        if "\\" not in token and token[0] in "'\"":
            return token[1:-1]
        try:
            return ast.literal_eval(token)  # one string and nothing else, by `_STRING`
        except (SyntaxError, ValueError):
            raise _Malformed(f"not a Python string: {_start(token)}") from None
    if token in _WORDS:
        return _WORDS[token]
    try:
        return float(token) if re.search(r"[.eE]", token) else int(token.rstrip("L"))
    except ValueError:
        raise _Malformed(f"not a Python literal: {_start(token)}") from None


def _start(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
