"""JSON of strangers as what a type says it is: each value of the right kind, or one line that names one that is not."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from src.core.errors import UserError
from src.core.files import read_json

T = TypeVar("T")

_NAMES = {int: "an integer of 64 bits", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
_MAX_INTEGER = 2**63
_SHOWN = 40


class _Misfit(Exception):
    """A value is not of its type; the message says which, and what it must be."""


def read_typed(path: Path, kind: type[T], advice: str) -> T:
    """Read a JSON file as `kind`, see `typed`.

    Raises:
        UserError: it is missing, is not JSON, or does not fit.
    """
    return typed(read_json(path), kind, where=str(path), advice=advice)


def typed(value: Any, kind: type[T], *, where: str, advice: str) -> T:
    """A value of `json.loads` as `kind`.

    Args:
        kind: a dataclass, which must have every key of the value, or a `TypedDict`, which may lack some; a `dict`,
            `list` or `tuple` of one type; text, numbers, booleans, None, a union of these, `Any`.
        where: the file; advice: what to do where the value does not fit.

    Raises:
        UserError: naming the key that is missing, unknown, or holds another kind of value.
    """
    try:
        return cast(T, _fit(value, kind, ""))
    except (_Misfit, UserError) as error:  # the latter of a dataclass that checks its ranges
        raise UserError(f"{where}: {error}; {advice}") from None


def _fit(value: Any, kind: Any, key: str) -> Any:
    if kind is Any:
        return value
    if is_dataclass(kind) or is_typeddict(kind):
        return _fit_fields(value, kind, key)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _fit_one_of(value, args, key)
    if origin is dict:
        return {name: _fit(part, args[1], _inner(key, name)) for name, part in _require(value, dict, key).items()}
    if origin in (list, tuple):
        parts = [_fit(part, args[0], f"{key}[{i}]") for i, part in enumerate(_require(value, list, key))]
        return parts if origin is list else tuple(parts)
    return _fit_scalar(value, kind, key)


def _fit_scalar(value: Any, kind: type, key: str) -> Any:
    sound = type(value) is kind or (kind is float and type(value) is int)  # JSON writes 1.0 as 1 where it is 1
    if not sound or (isinstance(value, int) and not -_MAX_INTEGER <= value < _MAX_INTEGER):
        raise _Misfit(f"{key or 'it'} is {_shown(value)}, must be {_NAMES[kind]}")
    return value


def _fit_one_of(value: Any, kinds: tuple[Any, ...], key: str) -> Any:
    for kind in kinds:
        try:
            return _fit(value, kind, key)
        except _Misfit as error:
            last = error
    raise last


def _fit_fields(value: Any, kind: Any, key: str) -> Any:
    given, hints = _require(value, dict, key), get_type_hints(kind)
    required = kind.__required_keys__ if is_typeddict(kind) else _without_default(kind)
    for name in hints:
        if name in required and name not in given:
            raise _Misfit(f"{_inner(key, name)} is missing")
    found = {name: _fit(part, hints.get(name, Any), _inner(key, name)) for name, part in given.items()}
    if is_typeddict(kind):
        return found
    for name in given.keys() - hints.keys():
        raise _Misfit(f"{_inner(key, name)} is no key of it")
    return kind(**found)


def _without_default(kind: Any) -> set[str]:
    return {entry.name for entry in fields(kind) if entry.default is MISSING and entry.default_factory is MISSING}


def _require(value: Any, kind: type, key: str) -> Any:
    if type(value) is not kind:
        raise _Misfit(f"{key or 'it'} is {_shown(value)}, must be {'an object' if kind is dict else 'a list'}")
    return value


def _inner(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list) else f"{value!r:.{_SHOWN}}"
